"""How report.html looks: light or dark as the reader prefers, on screens from 400 pixels on."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #57606a; --paper: #fff; --soft: #f3f4f6;
        --line: #d8dce2; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --dim: #9ba5b1; --paper: #16191d; --soft: #20252b; --line: #363d46;
          --link: #8dbbf2; }
  figure .scroll { filter: brightness(.9); }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem;
       color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; color: var(--ink); }
p { margin: .25rem 0 .75rem; }
ul { margin: 0; padding-left: 1.2rem; }
a { color: var(--link); }
.dim, .how, figcaption { color: var(--dim); font-size: .875rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem;
         margin: 1.25rem 0; }
.tiles > div { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem;
               line-height: 1.35; }
.tiles b { display: block; font-size: 1.9rem; line-height: 1.2; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.75rem 1.5rem; }
figure { margin: 0; }
figcaption { margin: 0 0 .5rem; max-width: 46rem; }
.scroll { overflow-x: auto; }
figure .scroll { background: #fff; border-radius: .25rem; }
img { display: block; width: 100%; height: auto; }
.cards { columns: 30rem 2; column-gap: 2.5rem; }
.cards section { break-inside: avoid; padding-bottom: 1.5rem; }
table { border-collapse: collapse; }
td, th { padding: .2rem 0 .2rem 1.5rem; text-align: left; vertical-align: top;
         font-weight: normal; }
th { padding-left: 0; white-space: nowrap; }
tr + tr > * { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.how { margin-top: .4rem; }
.how td, .how th { padding-block: 0; border: 0; }
pre { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem; margin: .5rem 0;
      overflow-x: auto; font-size: .85rem; overflow-wrap: normal; }
summary { cursor: pointer; }
"""
