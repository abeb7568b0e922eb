"""How the page looks: light and dark, narrow and wide, on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f7f9; --line: #d7dbe0; --ink: #1b1f24; --soft: #57606a; --accent: #0b57d0;
  --c0: #0b57d0; --c1: #c2410c; --c2: #15803d; --c3: #a21caf; --c4: #0e7490; --c5: #854d0e; --c6: #be123c; --c7: #4b5563;
  --good: #15703a; --bad: #b3261e; --wait: #8a5a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121417; --raised: #1c2025; --line: #363c44; --ink: #e8eaed; --soft: #a8b0ba; --accent: #8ab4f8;
    --c0: #8ab4f8; --c1: #fb9a5a; --c2: #6ddc93; --c3: #e79af5; --c4: #5fd3e8; --c5: #e6c15a; --c6: #ff8fa3; --c7: #b8bfc8;
    --good: #6ddc93; --bad: #ff8a80; --wait: #f0c060;
  }
}
* { box-sizing: border-box; }
html { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink); }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .8rem; padding-top: .4rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.2rem; margin: 0; overflow-wrap: anywhere; }
h4 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; }
a { color: var(--accent); }
a:focus-visible, button:focus-visible, input:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px;
}
.soft, .note, footer, dt { color: var(--soft); }
.note { display: block; font-size: .82rem; font-weight: 400; overflow-wrap: anywhere; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .4rem .8rem; }
.hidden-text { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; font-size: .88rem; }
th, td { text-align: left; padding: .45rem .7rem; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { background: var(--raised); white-space: nowrap; border-bottom-width: 2px; }
tbody th { font-weight: 600; overflow-wrap: anywhere; min-width: 9rem; }
.device, .scores th { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:hover { background: var(--raised); }
th button { all: unset; cursor: pointer; font-weight: 600; border-radius: 4px; }
th button:focus-visible { outline: 3px solid var(--accent); outline-offset: 3px; }
th button::after { content: " \\2195"; color: var(--soft); font-weight: 400; }
th[aria-sort="ascending"] button::after { content: " \\2191"; color: var(--accent); }
th[aria-sort="descending"] button::after { content: " \\2193"; color: var(--accent); }
sup a { text-decoration: none; font-weight: 600; padding: 0 .15em; }
.status { white-space: nowrap; }
.status::before { content: "\\25CF\\00A0"; color: var(--soft); }
.status.finished::before { color: var(--good); }
.status.running::before { color: var(--accent); }
.status.interrupted::before { color: var(--wait); }
.status.diverged::before, .status.failed::before { color: var(--bad); }
.protocols { font-size: .85rem; padding-left: 0; list-style: none; }
.protocols li { overflow-wrap: anywhere; padding: .1rem 0; }
.protocols li:target { background: var(--raised); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.2rem; }
figure { margin: 0; min-width: 0; }
.chart { border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem; }
.chart > svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
svg .axis { fill: var(--ink); }
svg .mark { fill: var(--ink); font-size: 11px; }
.gridline { stroke: var(--line); stroke-width: 1; }
.tick { stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.dot { fill: currentColor; stroke: var(--paper); stroke-width: 1; }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); } .s3 { color: var(--c3); }
.s4 { color: var(--c4); } .s5 { color: var(--c5); } .s6 { color: var(--c6); } .s7 { color: var(--c7); }
.s1 .line, .s5 .line { stroke-dasharray: 8 3; } .s2 .line, .s6 .line { stroke-dasharray: 3 2; }
.s3 .line, .s7 .line { stroke-dasharray: 9 3 2 3; }
.d1 .line { stroke-width: 3.2; } .d2 .line { stroke-width: 1.1; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: 0; margin: .4rem 0; font-size: .85rem; }
.legend li { display: flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; min-width: 0; }
.legend svg { width: 26px; height: 12px; flex: none; }
details { margin-top: .5rem; font-size: .88rem; }
summary { cursor: pointer; color: var(--accent); width: fit-content; }
.run { border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem 1.3rem; margin: 1.1rem 0; }
.run-head { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; }
.run-body { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.2rem; margin-top: .8rem; }
.sheet { display: flex; max-width: 34rem; }
.sheet ol { list-style: none; margin: 0; padding: 0 .5rem 0 0; display: grid; grid-auto-rows: 1fr; flex: none; font-size: .78rem; }
.sheet li { display: flex; align-items: center; justify-content: flex-end; min-height: 0; line-height: 1; color: var(--soft); }
.sheet img { display: block; width: 100%; height: auto; border-radius: 4px; image-rendering: pixelated; }
.sheet img[hidden] { display: none; }
.sheet .frame { flex: 1; min-width: 0; }
.slider { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .8rem; margin: .5rem 0; font-size: .9rem; }
.slider input { flex: 1 1 10rem; max-width: 20rem; accent-color: var(--accent); }
.slider output { font-variant-numeric: tabular-nums; min-width: 8rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .9rem; margin: .4rem 0; font-size: .88rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.command { display: flex; gap: .6rem; align-items: flex-start; }
pre { flex: 1; margin: 0; padding: .6rem .8rem; background: var(--raised); border-radius: 8px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; min-width: 0; }
.copy { font: inherit; font-size: .85rem; padding: .35rem .8rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--raised); color: var(--ink); cursor: pointer; flex: none; }
.copy:hover { border-color: var(--accent); }
footer { margin: 2.5rem auto; font-size: .85rem; }
@media (max-width: 36rem) {
  header, main, footer { padding-left: .8rem; padding-right: .8rem; }
  .run { padding: .9rem; } .command { flex-direction: column; } .command pre { align-self: stretch; }
  th, td { padding: .4rem .5rem; } dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; }
}
@media print {
  :root {
    color-scheme: light; --paper: #fff; --raised: #f2f2f2; --line: #bbb; --ink: #000; --soft: #333; --accent: #000;
    --c0: #0b57d0; --c1: #c2410c; --c2: #15803d; --c3: #a21caf; --c4: #0e7490; --c5: #854d0e; --c6: #be123c; --c7: #4b5563;
  }
  html { font-size: 10.5pt; }
  .copy, .slider input, details, .skip { display: none; }
  th button::after { content: none !important; }
  .chart, .sheet, tr, .command { break-inside: avoid; }
  h2, h3, h4, .run-head { break-after: avoid; }
  .charts, .run-body { grid-template-columns: 1fr 1fr; }
  .run { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: .6rem 0; }
  .scroll { overflow: visible; }
}
"""
