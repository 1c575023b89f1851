"use strict";
// What works without this file works by links and forms; this makes it quicker.

const typing = (target) => target.closest("input, select, textarea, button, summary") !== null;

// The worklist: j, k and the arrows go from film to film.
function step(by) {
  const films = [...document.querySelectorAll("a.film")];
  if (films.length === 0) return false;
  const at = films.indexOf(document.activeElement);
  const next = films[at < 0 ? (by > 0 ? 0 : films.length - 1) : Math.min(films.length - 1, Math.max(0, at + by))];
  next.focus();
  next.scrollIntoView({ block: "nearest" });
  return true;
}

function follow(selector) {
  const link = document.querySelector(selector);
  if (link) link.click();
  return link !== null;
}

// The film: what the form says is drawn at once, and the address says it too.
const view = document.getElementById("view");

function draw() {
  const query = new URLSearchParams(new FormData(view)).toString();
  for (const name of ["picture", "layer"]) {
    const image = document.getElementById(name);
    if (image === null) continue;
    const wanted = `${image.dataset.src}?${name === "picture" ? windowOnly(query) : query}`;
    if (image.getAttribute("href") !== wanted) image.setAttribute("href", wanted);
  }
  history.replaceState(null, "", `?${query}`);
}

function windowOnly(query) {
  const all = new URLSearchParams(query);
  return new URLSearchParams(["center", "width"].filter((name) => all.has(name)).map((name) => [name, all.get(name)])).toString();
}

if (view !== null) {
  let later = 0;
  const soon = () => { clearTimeout(later); later = setTimeout(draw, 80); };
  view.addEventListener("input", soon);
  view.addEventListener("reset", soon);
  view.addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  const picture = document.getElementById("picture");
  if (picture !== null) {
    const gone = document.getElementById("gone");
    picture.addEventListener("error", () => { gone.hidden = false; });
    picture.addEventListener("load", () => { gone.hidden = true; });
  }
}

function flip(names) {
  const boxes = [...view.querySelectorAll(names)];
  const on = !boxes.some((box) => box.checked);
  for (const box of boxes) box.checked = on;
  draw();
  return true;
}

function nextMap() {
  const heat = view.elements.heat;
  heat.selectedIndex = (heat.selectedIndex + 1) % heat.options.length;
  draw();
  return true;
}

const keys = view === null
  ? {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    n: () => follow("a[rel=next]"),
    "/": () => { const first = document.querySelector(".filters select"); if (first) first.focus(); return first !== null; },
  }
  : {
    r: () => flip("[name=region]"), o: () => flip("[name=outlines]"), h: nextMap,
    j: () => follow("#older"), k: () => follow("#newer"), u: () => follow("#back"),
  };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys) || typing(event.target)) return;
  if (keys[event.key]()) event.preventDefault();
});

// The queue: drawn anew whenever the server says so.
const queue = document.getElementById("queue");
if (queue !== null) {
  const live = document.getElementById("live");
  const source = new EventSource(queue.dataset.src);
  source.addEventListener("message", (event) => {
    const words = JSON.parse(event.data);
    // Not while somebody is on a link in it.
    if (!queue.contains(document.activeElement)) queue.innerHTML = words;
    live.textContent = "Live.";
  });
  source.addEventListener("error", () => { live.textContent = "The connection was lost; trying again."; });
  window.addEventListener("pagehide", () => source.close());
}
