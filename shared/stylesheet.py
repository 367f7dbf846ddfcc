"""What all pages look like: colours for light and dark, text, tables, tiles, notices. A page adds what it alone has.

No font, picture or script comes from elsewhere: a page is one file that can be mailed.

Left out: the reading room of a review, which is dark whatever the machine prefers (server/reports/review_page.py).
"""

STYLE = """
:root { color-scheme: light dark;
  --page:#fbfbf9; --card:#ffffff; --text:#1f2930; --quiet:#62707a; --line:#e3e6e4; --accent:#0f6b6b; --soft:#edf4f3;
  --alarm:#a83a29; --alarm-soft:#fbefec; --good:#2c6e49; --warn:#946200; }
@media (prefers-color-scheme: dark) { :root {
  --page:#12171b; --card:#191f24; --text:#dde4e8; --quiet:#93a0a9; --line:#2b343b; --accent:#66c9c2; --soft:#1a2829;
  --alarm:#f2937e; --alarm-soft:#2d1f1c; --good:#7cc79a; --warn:#e0b45c; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--page); color:var(--text);
  font:1rem/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { margin:0 auto; }
h1, h2, h3 { font-weight:600; line-height:1.2; letter-spacing:-.012em; text-wrap:balance; }
.eyebrow { color:var(--accent); font-size:.82rem; font-weight:600; letter-spacing:.08em; text-transform:uppercase; margin:0; }
.quiet { color:var(--quiet); font-size:.9rem; }
.tiles { display:grid; gap:1px; background:var(--line); border:1px solid var(--line); border-radius:12px; overflow:hidden; }
.tile { background:var(--card); padding:20px 22px; }
.tile dt { color:var(--quiet); font-size:.85rem; }
.tile dd { margin:4px 0 0; font-size:1.7rem; font-weight:600; letter-spacing:-.02em; line-height:1.2; }
.tile dd.small { font-size:.88rem; font-weight:400; letter-spacing:0; color:var(--quiet); line-height:1.45; }
.table { overflow-x:auto; }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:9px 16px 9px 0; border-bottom:1px solid var(--line); vertical-align:top; }
thead th { color:var(--quiet); font-weight:500; font-size:.84rem; }
tbody th { font-weight:500; }
th:last-child, td:last-child { padding-right:0; }
td.n, th.n { text-align:right; white-space:nowrap; }
.yes { color:var(--good); } .no { color:var(--alarm); font-weight:600; }
.notice { border-left:3px solid var(--alarm); background:var(--alarm-soft); padding:13px 18px; border-radius:0 8px 8px 0; }
.notice p:last-child, .notice ul:last-child { margin-bottom:0; }
footer { border-top:1px solid var(--line); }
"""
