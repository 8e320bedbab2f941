"""Turn messages into the text a model was trained on."""
