"""The reader's page: one image, two questions, artefacts; every answer by key. No resource from anywhere else."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Real or synthetic? · fedsynth review</title>
<style>
:root { color-scheme: dark; --page:#0d1114; --card:#171d22; --text:#e3e9ec; --quiet:#8d9aa4; --line:#2c353c; --accent:#66c9c2; }
* { box-sizing:border-box; }
body { margin:0; background:var(--page); color:var(--text); min-height:100vh; display:grid; grid-template-rows:auto 1fr;
  font:1rem/1.5 ui-sans-serif, system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
header { display:flex; gap:20px; align-items:center; padding:14px 24px; color:var(--quiet); font-size:.92rem; }
header b { color:var(--text); font-weight:600; }
.bar { flex:1; height:4px; background:var(--line); border-radius:2px; overflow:hidden; }
.bar i { display:block; height:100%; width:0; background:var(--accent); transition:width .2s; }
main { display:grid; grid-template-columns:minmax(0, 1fr) 360px; gap:32px; padding:0 24px 24px; align-items:center; }
.view { position:relative; background:#000; border-radius:12px; height:min(84vh, 900px); overflow:hidden; }
.view img { position:absolute; inset:0; height:100%; width:100%; object-fit:contain; }
fieldset { border:0; padding:0; margin:0 0 16px; }
legend { padding:0; margin-bottom:8px; color:var(--quiet); font-size:.9rem; }
.row { display:grid; grid-auto-flow:column; grid-auto-columns:1fr; gap:8px; }
.list { display:grid; gap:6px; }
button { font:inherit; color:var(--text); background:var(--card); border:1px solid var(--line); border-radius:8px;
  padding:10px 12px; cursor:pointer; text-align:left; display:flex; gap:10px; align-items:center; }
.row button { justify-content:center; text-align:center; }
.list { grid-template-columns:1fr 1fr; }
.list button { padding:6px 10px; font-size:.86rem; line-height:1.25; }
button[aria-pressed=true] { border-color:var(--accent); background:#15302f; }
button:focus-visible { outline:2px solid var(--accent); outline-offset:2px; }
button:disabled { opacity:.45; cursor:default; }
kbd { font:600 .78rem ui-monospace, "DejaVu Sans Mono", monospace; color:var(--quiet); border:1px solid var(--line);
  border-radius:4px; padding:1px 6px; background:var(--page); }
#save { width:100%; justify-content:center; border-color:var(--accent); }
.ends { display:flex; justify-content:space-between; color:var(--quiet); font-size:.82rem; margin-top:4px; }
#note { min-height:1.5em; color:var(--quiet); font-size:.9rem; margin:12px 0 0; }
#end { display:none; place-self:center; text-align:center; grid-column:1 / -1; }
#end h1 { font-weight:600; }
body.over .view, body.over form { display:none; } body.over #end { display:block; }
@media (max-width:820px) { main { grid-template-columns:1fr; } .view { height:60vh; } }
</style>
</head>
<body>
<header><b>Real or synthetic?</b><span id="who"></span><div class="bar" role="presentation"><i id="bar"></i></div>
<span id="count" aria-live="polite"></span></header>
<main>
  <div class="view"><img id="image" alt="The image to judge"></div>
  <form>
    <fieldset><legend>This image is</legend><div class="row">
      <button type="button" id="real" aria-pressed="false">real <kbd>R</kbd></button>
      <button type="button" id="synthetic" aria-pressed="false">synthetic <kbd>S</kbd></button></div></fieldset>
    <fieldset><legend>Its anatomy</legend><div class="row" id="scores"></div>
      <div class="ends"><span>absurd</span><span>flawless</span></div></fieldset>
    <fieldset><legend>Artefacts, if any</legend><div class="list" id="marks"></div></fieldset>
    <button type="button" id="save" disabled>save and go on <kbd>Enter</kbd></button>
    <p id="note" role="status"></p>
    <button type="button" id="back" disabled>change the one before <kbd>Backspace</kbd></button>
  </form>
  <div id="end"><h1>That was the last one. Thank you.</h1><p>Everything is saved; this page can be closed.</p></div>
</main>
<script>
"use strict";
const token = encodeURIComponent(new URLSearchParams(location.search).get("token") || "");
const KEYS = ["z", "x", "c", "v", "b", "n"];
const $ = id => document.getElementById(id);
let state = null, image = null, answer = null, busy = false;
function blank() { return { real: null, score: null, artefacts: [] }; }
function press(button, on) { button.setAttribute("aria-pressed", on ? "true" : "false"); }
function draw() {
  press($("real"), answer.real === true); press($("synthetic"), answer.real === false);
  [...$("scores").children].forEach((b, i) => press(b, answer.score === i + 1));
  [...$("marks").children].forEach((b, i) => press(b, answer.artefacts.includes(state.artefacts[i])));
  $("save").disabled = busy || answer.real === null || answer.score === null;
  $("back").disabled = busy || !state.before || image === state.before.image;
}
function show(next) {
  state = next; image = next.image; answer = blank();
  $("who").textContent = next.reader; $("count").textContent = next.done + " of " + next.total;
  $("bar").style.width = (100 * next.done / next.total) + "%";
  document.body.classList.toggle("over", !image);
  if (!$("scores").children.length) build();
  if (image) $("image").src = "/image/" + image + "?token=" + token;
  draw();
}
function build() {
  for (let i = 1; i <= 5; i++) {
    const b = document.createElement("button"); b.type = "button"; b.textContent = i;
    b.addEventListener("click", () => { answer.score = i; draw(); }); $("scores").append(b);
  }
  state.artefacts.forEach((name, i) => {
    const b = document.createElement("button"), k = document.createElement("kbd"); b.type = "button";
    k.textContent = KEYS[i].toUpperCase(); b.append(k, name); b.addEventListener("click", () => mark(i)); $("marks").append(b);
  });
}
function mark(i) {
  const name = state.artefacts[i], at = answer.artefacts.indexOf(name);
  if (at < 0) answer.artefacts.push(name); else answer.artefacts.splice(at, 1);
  draw();
}
async function ask(path, body) {
  busy = true; if (state) draw();
  try {
    const reply = await fetch(path + "?token=" + token, body ? { method: "POST", body: JSON.stringify(body) } : {});
    if (!reply.ok) throw new Error(reply.status);
    const next = await reply.json(); busy = false; $("note").textContent = ""; show(next);
  } catch (e) { busy = false; $("note").textContent = "Not saved: the server does not answer. Try again."; if (state) draw(); }
}
function save() { if (!$("save").disabled) ask("/answer", { image, ...answer }); }
function back() {
  if ($("back").disabled) return;
  const b = state.before; image = b.image; answer = { real: b.real, score: b.score, artefacts: [...b.artefacts] };
  document.body.classList.remove("over"); $("image").src = "/image/" + image + "?token=" + token; draw();
}
$("real").addEventListener("click", () => { answer.real = true; draw(); });
$("synthetic").addEventListener("click", () => { answer.real = false; draw(); });
$("save").addEventListener("click", save); $("back").addEventListener("click", back);
document.addEventListener("keydown", e => {
  if (!state || e.ctrlKey || e.altKey || e.metaKey || e.repeat) return;
  const key = e.key.toLowerCase();
  if (key === "backspace") back();
  else if (!image) return;
  else if (key === "r") { answer.real = true; draw(); }
  else if (key === "s") { answer.real = false; draw(); }
  else if (key >= "1" && key <= "5") { answer.score = Number(key); draw(); }
  else if (KEYS.includes(key)) mark(KEYS.indexOf(key));
  else if (key === "enter") save();
  else return;
  e.preventDefault();
});
document.querySelector("form").addEventListener("submit", e => e.preventDefault());
ask("/next");
</script>
</body>
</html>
"""
