"""What a browser calls itself, in words that its person knows it by. Pure.

Names the few that nearly everybody has. Of others it shows what they said: a guess would be worse.
"""

from __future__ import annotations

from tenants.http import shortened

# The more particular first: nearly every browser also calls itself Chrome and Safari.
_PROGRAMS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Firefox/", "Firefox"),
    ("FxiOS/", "Firefox"),
    ("CriOS/", "Chrome"),
    ("Chromium/", "Chromium"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
    ("curl/", "curl"),
)
_SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("CrOS", "ChromeOS"),
    ("Macintosh", "macOS"),
    ("Linux", "Linux"),
)
SHOWN = 60


def device(agent: str) -> str:
    """Firefox on Windows; what it calls itself, shortened, where that is nothing known."""
    program = next((name for mark, name in _PROGRAMS if mark in agent), "")
    system = next((name for mark, name in _SYSTEMS if mark in agent), "")
    if program and system:
        return f"{program} on {system}"
    return program or shortened(agent, SHOWN) or "An unnamed browser"
