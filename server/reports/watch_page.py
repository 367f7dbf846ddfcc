"""The live page itself: one file, its style and its script inside, by whose hashes the browser runs them and nothing else."""

from __future__ import annotations

from shared import stylesheet

STYLE = (
    stylesheet.STYLE
    + """
main { max-width:1120px; padding:40px 32px 64px; }
h1 { font-size:2.1rem; margin:.1em 0 .2em; } h2 { font-size:1.15rem; margin:0 0 12px; }
p { margin:0; }
header { display:flex; justify-content:space-between; align-items:flex-end; gap:24px; flex-wrap:wrap; }
#pulse { display:flex; align-items:center; gap:8px; color:var(--quiet); font-size:.88rem; }
.dot { display:inline-block; width:9px; height:9px; border-radius:50%; background:var(--quiet); flex:none; }
.dot.good { background:var(--good); } .dot.bad { background:var(--alarm); } .dot.warn { background:var(--warn); }
.notice { margin-top:16px; }
.notice.mild { border-color:var(--warn); background:transparent; }
.tiles { grid-template-columns:repeat(auto-fit, minmax(165px, 1fr)); margin:28px 0 0; background:var(--card); }
.tile { padding:18px 20px; box-shadow:0 0 0 1px var(--line); } .tile dd { font-size:1.6rem; overflow-wrap:anywhere; }
section { margin-top:40px; }
#rounds { display:flex; gap:3px; margin-top:12px; }
#rounds i { flex:1; min-width:2px; height:12px; border-radius:3px; background:var(--line); overflow:hidden; display:block; }
#rounds i b { display:block; height:100%; width:0; background:var(--accent); transition:width .4s; }
tbody th { font-weight:600; white-space:nowrap; }
td.one, thead th { white-space:nowrap; } td.one .dot { margin-right:8px; }
td.last { min-width:240px; color:var(--quiet); overflow-wrap:anywhere; }
td.last.no { color:var(--alarm); }
.meter { display:block; height:4px; margin-top:6px; background:var(--line); border-radius:2px; overflow:hidden; min-width:90px; }
.meter b { display:block; height:100%; width:0; background:var(--accent); }
.pair { display:grid; grid-template-columns:minmax(0, 5fr) minmax(0, 7fr); gap:40px; }
.pair.alone { grid-template-columns:1fr; }
svg { display:block; width:100%; height:auto; overflow:visible; } svg text { fill:var(--quiet); font-size:11px; }
svg .value { fill:var(--text); font-weight:600; font-size:12px; }
#picture { display:block; width:100%; height:auto; background:#000; border-radius:8px; }
#which { display:flex; flex-wrap:wrap; gap:6px; margin-top:10px; }
button { font:inherit; font-size:.84rem; color:var(--text); background:var(--card); border:1px solid var(--line); border-radius:6px;
  padding:3px 10px; cursor:pointer; } button[aria-pressed=true] { border-color:var(--accent); background:var(--soft); }
button:focus-visible { outline:2px solid var(--accent); outline-offset:2px; }
footer { margin-top:48px; padding-top:16px; overflow-wrap:anywhere; }
[hidden] { display:none !important; }
@media (max-width:760px) { main { padding:24px 16px 48px; } .pair { grid-template-columns:1fr; } h1 { font-size:1.7rem; } }
"""
)

SCRIPT = r"""
"use strict";
const token = encodeURIComponent(new URLSearchParams(location.search).get("token") || "");
const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const RECEIVED = "update received";
let chosen = null, shown = "", last = 0;

function make(tag, text, kind) {
  const e = document.createElement(tag);
  if (text !== undefined && text !== null) e.textContent = text;
  if (kind) e.className = kind;
  return e;
}
function svg(tag, at, text) {
  const e = document.createElementNS(SVG, tag);
  for (const k in at) e.setAttribute(k, at[k]);
  if (text !== undefined) e.textContent = text;
  return e;
}
function span(s) { return s < 120 ? Math.round(s) + " s" : s < 7200 ? Math.round(s / 60) + " min" : (s / 3600).toFixed(1) + " h"; }
function ago(time, now) {
  if (!time) return "never";
  const s = Math.max(0, (new Date(now) - new Date(time)) / 1000);
  return s < 172800 ? span(s) + " ago" : Math.round(s / 86400) + " d ago";
}
function short(v) { return Number(v).toPrecision(3); }

function tile(title, value, note) {
  const d = make("div", null, "tile");
  d.append(make("dt", title), make("dd", value), make("dd", note, "small"));
  return d;
}
function roundTile(r, now) {
  const heard = r.told ? "last word " + ago(r.told, now) : "nothing heard yet";
  const said = { running: r.stage, open: r.stage + "; " + heard, waiting: "waiting for the server",
    finished: "finished after " + span(r.seconds) }[r.state];
  return tile("Round", r.round + " of " + r.rounds, said || r.state);
}
function contributedTile(r) {
  const over = r.state === "finished" && r.history.length;
  const there = over ? r.history[r.history.length - 1].contributed : r.contributed;
  const again = r.attempt > 1 ? ", attempt " + r.attempt : "";
  return tile("Contributed", there.length + " of " + r.sites, (over ? "sites, to the last round" : "sites, to this round") + again);
}
function epsilonTile(r) {
  const spent = Object.values(r.epsilons);
  if (r.epsilon === null || spent.includes(null)) return tile("Epsilon per patient", "none", "without privacy: never released");
  const most = spent.length ? Math.max(...spent).toFixed(2) : "0";
  return tile("Epsilon per patient", most, "most of any site, of " + r.epsilon + " at delta " + r.delta.toExponential());
}
function releaseTile(r) {
  const asked = Object.keys(r.judged).length, yes = Object.values(r.judged).filter(bit => bit === true).length;
  const word = { released: "written", forced: "by force", refused: "refused" }[r.release] || "not yet";
  const note = asked ? yes + " of " + asked + " sites say yes" : r.drawn ? r.drawn[0] + " of " + r.drawn[1] + " images drawn"
    : "after the last round";
  return tile("Release", word, note);
}
function tiles(f) {
  const all = f.run ? [roundTile(f.run, f.time), contributedTile(f.run), epsilonTile(f.run), releaseTile(f.run)] : [];
  const days = Object.entries(f.certificates);
  if (days.length) {
    const first = Math.min(...days.map(([, n]) => n));
    all.push(tile("Certificates", first + " days", days.map(([what, n]) => what + " " + n).join(", ")));
  }
  if (f.journal) all.push(tile("Journal", f.journal.state, f.journal.records + " records, signed"));
  $("tiles").replaceChildren(...all);
}
function rounds(r) {
  const bars = [];
  for (let n = 1; n <= r.rounds; n++) {
    const done = r.history.some(h => h.round === n), bar = make("i"), part = make("b");
    part.style.width = (done ? 100 : n === r.round && r.asked ? 100 * r.contributed.length / r.asked : 0) + "%";
    bar.append(part);
    bars.push(bar);
  }
  $("rounds").replaceChildren(...bars);
}

function siteRow(s, f) {
  const row = make("tr"), kind = { connected: "good", revoked: "bad", expired: "bad", away: f.serving ? "warn" : "" }[s.state];
  row.append(make("th", s.name));
  if (f.address) {
    const state = make("td", null, "one");
    state.append(make("span", null, "dot " + (kind || "")), s.state);
    row.append(state, make("td", ago(s.seen, f.time), "one"), make("td", s.state === "revoked" ? "" : s.days + " days", "one"));
  }
  const spent = make("td", s.epsilon !== null ? s.epsilon.toFixed(3) : s.round ? "none" : "", "n");
  if (s.epsilon !== null && f.run && f.run.epsilon) {
    const meter = make("span", null, "meter"), part = make("b");
    part.style.width = Math.min(100, 100 * s.epsilon / f.run.epsilon) + "%";
    meter.append(part);
    spent.append(meter);
  }
  row.append(make("td", s.round ?? "", "n"), spent, make("td", s.last, s.last && s.last !== RECEIVED ? "last no" : "last"));
  return row;
}
function sites(f) {
  const head = make("tr"), network = f.address ? [["State"], ["Last seen"], ["Approved for"]] : [];
  const titles = [["Site"], ...network, ["Round", "n"], ["Epsilon", "n"], ["Last word"]];
  for (const [title, kind] of titles) head.append(make("th", title, kind));
  $("head").replaceChildren(head);
  $("body").replaceChildren(...f.sites.map(s => siteRow(s, f)));
  $("sites").hidden = !f.sites.length;
}

function chart(r) {
  const told = r.charted, name = told.name, k = told.factor || 1;
  const points = (name && r.metrics[name] || []).map(p => ({ round: p.round, value: k * p.value, floor: k * p.floor,
    low: k * p.low, high: k * p.high }));
  $("figure").hidden = !points.length;
  $("pair").classList.toggle("alone", !points.length || !r.samples.length);
  if (!points.length) return;
  const width = 440, height = 210, right = width - 56, bottom = height - 24;
  const title = name + (k === 1 ? "" : " \u00d7 " + k), digits = told.digits;
  const figure = v => digits === undefined ? short(v) : v.toFixed(digits);
  const end = points[points.length - 1], low = 1.08 * Math.min(0, ...points.map(p => Math.min(p.low, p.floor)));
  const top = 1.08 * Math.max(...points.map(p => Math.max(p.high, p.floor)), low + 1e-9);
  const x = n => 8 + (right - 8) * n / Math.max(1, r.rounds), y = v => 4 + (bottom - 4) * (1 - (v - low) / (top - low));
  const line = (v, at) => svg("line", { x1: 8, x2: right, y1: y(v), y2: y(v), ...at });
  const path = (side, list) => list.map(p => x(p.round) + " " + y(p[side])).join("L");
  const s = svg("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": title + " over the rounds" });
  s.append(line(0, { stroke: "var(--line)" }), line(end.floor, { stroke: "var(--quiet)", "stroke-dasharray": "5 4" }));
  s.append(svg("text", { x: right, y: y(end.floor) + 14, "text-anchor": "end" }, "real against real " + figure(end.floor)));
  const band = "M" + path("high", points) + "L" + path("low", points.slice().reverse()) + "Z";
  s.append(svg("path", { d: band, fill: "var(--accent)", "fill-opacity": ".16" }));
  s.append(svg("path", { d: "M" + path("value", points), fill: "none", stroke: "var(--accent)", "stroke-width": 2 }));
  for (const p of points) {
    const r_ = p.round === r.best_round ? 4.5 : 3;
    s.append(svg("circle", { cx: x(p.round), cy: y(p.value), r: r_, fill: "var(--accent)" }));
  }
  const step = Math.max(1, Math.ceil(r.rounds / 10));
  for (let n = 0; n <= r.rounds; n += step) s.append(svg("text", { x: x(n), y: height - 6, "text-anchor": "middle" }, n));
  s.append(svg("text", { x: x(end.round) + 9, y: y(end.value) + 4, class: "value" }, figure(end.value)));
  $("title").textContent = title + " over the rounds";
  $("chart").replaceChildren(s);
  const best = r.best_round === null ? "" : " Best so far: round " + r.best_round + ".";
  $("best").textContent = (told.reading ? told.reading + " " : "") + "With its 95 % interval." + best;
}

function samples(r) {
  $("samples").hidden = !r.samples.length;
  if (!r.samples.length) return;
  const newest = r.samples[r.samples.length - 1], at = r.samples.includes(chosen) ? chosen : newest, key = r.name + "/" + at;
  if (key !== shown) {
    shown = key;
    $("picture").src = "/samples/" + key + "?token=" + token;
    $("picture").alt = "Drawn images of round " + at + ", one row for each class";
  }
  const step = Math.ceil(r.samples.length / 16), few = r.samples.filter((n, i) => i % step === 0 || n === newest || n === at);
  const focus = document.activeElement && document.activeElement.dataset.round;
  $("which").replaceChildren(...few.map(n => {
    const b = make("button", n ? "round " + n : "public base");
    b.type = "button";
    b.dataset.round = n;
    b.setAttribute("aria-pressed", n === at ? "true" : "false");
    b.addEventListener("click", () => { chosen = n; samples(r); });
    return b;
  }));
  const before = focus !== undefined && document.querySelector('[data-round="' + focus + '"]');
  if (before) before.focus();
}

function show(f) {
  document.title = (f.run ? f.run.name + " " + f.run.round + "/" + f.run.rounds : f.name) + " · fedsynth";
  $("name").textContent = f.run && f.address ? f.name + " · " + f.run.name : f.name;
  $("where").textContent = f.address ? f.address + (f.serving ? ", serving" : ", not serving") : "a run on this machine";
  const said = [...f.alarms.map(t => make("p", t, "notice")), ...f.warnings.map(t => make("p", t, "notice mild"))];
  $("said").replaceChildren(...said);
  tiles(f);
  sites(f);
  $("run").hidden = !f.run;
  if (f.run) { rounds(f.run); chart(f.run); samples(f.run); }
  $("key").textContent = f.journal && f.journal.key ? "Journal signed by the key " + f.journal.key + "." : "";
}
function pulse(good, text) {
  $("pulse").firstElementChild.className = "dot " + (good ? "good" : "bad");
  $("pulse").lastElementChild.textContent = text;
}
async function ask() {
  try {
    const reply = await fetch("/facts?token=" + token), f = await reply.json();
    if (f.error) throw new Error(f.error);
    show(f);
    last = Date.now();
    pulse(true, "live");
  } catch (e) { pulse(false, last ? "no answer for " + span((Date.now() - last) / 1000) : "no answer"); }
  setTimeout(ask, 2000);
}
ask();
"""

BODY = """<main>
<header><div><p class="eyebrow">fedsynth live</p><h1 id="name">&nbsp;</h1><p class="quiet" id="where"></p></div>
<p id="pulse" role="status"><span class="dot"></span><span>connecting</span></p></header>
<div id="said" aria-live="polite"></div>
<dl class="tiles" id="tiles"></dl>
<section id="sites" hidden><h2>Sites</h2>
<div class="table"><table><thead id="head"></thead><tbody id="body"></tbody></table></div></section>
<div id="run" hidden>
<section><h2>Rounds</h2><div id="rounds" aria-hidden="true"></div></section>
<section class="pair" id="pair"><div id="figure"><h2 id="title"></h2><div id="chart"></div><p class="quiet" id="best"></p></div>
<div id="samples"><h2>Drawn images</h2><img id="picture" alt=""><div id="which"></div></div></section>
</div>
<footer class="quiet">This page changes nothing and shows no real image. <span id="key"></span></footer>
</main>"""

PAGE = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>fedsynth</title>\n'
    f"<style>{STYLE}</style>\n</head>\n<body>\n{BODY}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
)
