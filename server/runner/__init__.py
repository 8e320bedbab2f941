"""One child process per loaded model: its protocol, its parent side, its engine."""
