"""``python -m appliance.cli``: the same as ``satchel``."""

from __future__ import annotations

from appliance.cli import main

if __name__ == "__main__":
    main()
