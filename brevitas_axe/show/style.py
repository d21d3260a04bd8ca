"""The page's style sheet: system fonts, one accent, light and dark."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d2127; --soft: #5b6470; --line: #e1e4e8;
  --good: #1f7a55; --good-bg: #e4f4ec; --bad: #b3283d; --bad-bg: #fbe7ea;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e6e8eb; --soft: #9aa4b0; --line: #323943;
    --good: #62cfa0; --good-bg: #15362a; --bad: #f08a99; --bad-bg: #42202a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 40px 0 10px; }
p { margin: 6px 0; max-width: 76ch; }
.soft { color: var(--soft); }
.option { white-space: nowrap; }
a { color: inherit; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 22px 0 0; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; }
.facts + p { margin-top: 14px; }
.fact b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.fact > span { color: var(--soft); font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow-x: auto; }
.card + .card { margin-top: 12px; }
.plot { padding: 10px 12px; }
.plot svg { display: block; width: 100%; height: auto; }
.narrow { display: none; }
.graph svg { display: block; }
.graph text { font-size: 12px; fill: var(--ink); }
.graph .title { font-weight: 600; font-family: ui-monospace, SFMono-Regular, Menlo, monospace; }
.graph .soft { fill: var(--soft); font-size: 11px; }
.graph .box { fill: var(--card); stroke: var(--line); }
.graph .line { fill: none; stroke: var(--soft); }
.graph .good .box { fill: var(--good-bg); stroke: var(--good); }
.graph .bad .box { fill: var(--bad-bg); stroke: var(--bad); }
.good .bar { fill: var(--good); }
.bad .bar { fill: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { font-size: 12.5px; font-weight: 600; color: var(--soft); vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); }
.number { text-align: right; }
.name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px;
  white-space: normal; }
td { white-space: nowrap; }
.sentence { white-space: normal; min-width: 22ch; max-width: 48ch; }
.operation { display: block; max-width: 15ch; overflow: hidden; text-overflow: ellipsis;
  color: var(--soft); }
tr.ours td { background: var(--good-bg); }
tr.overflow td { background: var(--bad-bg); }
.badge { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: 13px;
  font-weight: 600; white-space: nowrap; }
.good { color: var(--good); background: var(--good-bg); }
.bad { color: var(--bad); background: var(--bad-bg); }
dl { max-width: 80ch; }
dt { font-weight: 600; margin-top: 10px; }
dd { margin: 0; color: var(--soft); }
@media screen and (max-width: 820px) {
  .wide { display: none; }
  .narrow { display: block; }
  .narrow svg { max-width: 480px; }
  main { padding: 24px 16px 48px; }
  td:first-child { max-width: 42vw; white-space: normal; overflow-wrap: break-word; }
  td:first-child:not(.number) { min-width: 13ch; }
  td .name { display: inline-block; min-width: 11ch; }
}
@media print {
  main { max-width: none; padding: 0; }
  .card { overflow: visible; }
  .plot, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .graph svg { max-width: 100%; height: auto; }
  table, th, .badge, td .name { font-size: 10px; }
  th, td { padding: 3px 4px; white-space: normal; }
  .badge { padding: 0 5px; }
  .operation { max-width: 10ch; }
  .sentence { min-width: 0; }
  th:first-child, td:first-child { position: static; }
  * { print-color-adjust: exact; }
}
footer { margin-top: 44px; color: var(--soft); font-size: 13px; }
"""
