"""How Nightmill's own pages look: one self-contained HTML file each. No scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #16202c; --soft: #5b6877; --line: #dfe4ea;
  --keep: #1f9d8b; --keep2: #bfe5df; --r0: #d9822b; --r1: #cf4f4f; --r2: #7d5bb8; --r3: #4b7bb5; --good: #1b7f4b; --bad: #b3362f; }
@media (prefers-color-scheme: dark) { :root {
  --page: #10151b; --card: #18202a; --ink: #e6ebf1; --soft: #97a5b5; --line: #2b3644;
  --keep: #38c1ac; --keep2: #1f4f4a; --r0: #e79a4c; --r1: #e27373; --r2: #a88adb; --r3: #7aa7dc; --good: #5ecb91; --bad: #ef8078; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { font-size: 28px; margin: 0; letter-spacing: -.4px; } h2 { font-size: 17px; margin: 0 0 12px; }
header p { margin: 4px 0 20px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 16px; }
section { overflow-x: auto; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 14px; } .tile b { display: block; font-size: 23px; letter-spacing: -.3px; font-weight: 650; }
.tile span { color: var(--soft); font-size: 13px; }
section { padding: 18px 20px; margin-bottom: 16px; } .two { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }
.two > div { display: flex; flex-direction: column; } .two section:last-child { flex: 1; } @media (max-width: 800px) { .two { grid-template-columns: 1fr; gap: 0; } }
.decision { border-left: 5px solid var(--soft); } .promoted { border-left-color: var(--good); } .failed { border-left-color: var(--bad); }
.decision p { margin: 0; } .note { color: var(--soft); font-size: 13px; margin: 8px 0 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; border-bottom: 1px solid var(--line); padding: 4px 8px 4px 0; }
td { padding: 5px 8px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; } tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; } .w { width: 42%; } td:first-child { white-space: nowrap; } .mono { font: 12.5px/1.45 ui-monospace, Menlo, monospace; overflow-wrap: anywhere; }
.track { background: var(--line); border-radius: 4px; height: 10px; margin-top: 6px; overflow: hidden; display: flex; }
.track i { display: block; height: 10px; background: var(--keep); } .track i.no { background: var(--r1); }
.badge { border-radius: 99px; padding: 1px 9px; font-size: 12.5px; border: 1px solid currentColor; white-space: nowrap; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); } a { color: var(--r3); }
details { border-top: 1px solid var(--line); padding: 8px 0; } details:first-of-type { border-top: 0; } summary { cursor: pointer; }
blockquote { margin: 8px 0 0; padding: 8px 12px; background: var(--page); border-radius: 6px; }
svg { width: 100%; height: auto; display: block; } svg.small { max-width: 560px; } svg text { fill: var(--ink); font: 12.5px system-ui, sans-serif; }
.paper { --ink: #24292f; --soft: #6e7781; } svg text.soft { fill: var(--soft); } svg text.big { font-size: 16px; font-weight: 650; }
"""


def page(title: str, header: str, parts: Iterable[str]) -> str:
    """The whole file. title: plain text; header and parts: HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><header>{header}</header>"
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )
