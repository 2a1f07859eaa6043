// A picture with its levels: the slider, the token maps, and what is told of one token.
"use strict";

const Pyramid = (() => {
  const facts = window.PAGE;
  const count = facts.levels.length;
  const offsets = facts.levels.reduce((found, [h, w]) => [...found, found.at(-1) + h * w], [0]);
  const mostBits = Math.log2(Math.max(facts.vocab_size, 2));
  const cells = [];
  let answer = null;
  let others = {};
  let chosen = null;
  let timer = null;
  let pin = () => {};

  const levelOf = (position) => offsets.findLastIndex((start) => start <= position);
  const told = (found, position, field) => {
    const k = levelOf(position);
    return found.levels[k][field][position - offsets[k]];
  };

  function place(position) {
    const k = levelOf(position);
    const [, width] = facts.levels[k];
    const at = position - offsets[k];
    return `level ${k + 1}, row ${Math.floor(at / width) + 1}, column ${(at % width) + 1}`;
  }

  /** Shows the pictures as far as the slider says. */
  function showLevel() {
    const level = Number(byId("level").value);
    const upTo = (found) => (found.levels.length ? found.levels[level - 1].image : found.image);
    byId("image").src = upTo(answer);
    for (const name of ["unguided", "before"]) {
      byId(`${name}-figure`).hidden = !others[name];
      if (others[name]) byId(name).src = upTo(others[name]);
    }
    const [h, w] = facts.levels[level - 1];
    byId("level-text").textContent = `${level} of ${count} (${h}×${w})`;
    byId("caption").textContent = answer.levels.length ? `after level ${level} of ${count}` : "";
    byId("image").alt = `A drawing of ${Settings.asked()}, ${byId("caption").textContent}`;
    byId("maps").querySelectorAll(".map").forEach((map, k) => {
      map.classList.toggle("ahead", k >= level);
    });
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    byId("play").textContent = "Play";
  }

  /** Lets the picture appear level by level. */
  function play() {
    stop();
    const slider = byId("level");
    slider.value = 1;
    showLevel();
    byId("play").textContent = "Stop";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      showLevel();
      if (Number(slider.value) >= count) stop();
    }, Math.min(500, 3000 / count));
  }

  function makeMaps() {
    facts.levels.forEach(([h, w], k) => {
      const map = element("div", { className: "map" });
      const grid = element("div", { className: "grid" });
      grid.style.gridTemplateColumns = `repeat(${w}, 1fr)`;
      grid.setAttribute("role", "group");
      grid.setAttribute("aria-label", `Tokens of level ${k + 1}`);
      for (let i = 0; i < h * w; i++) {
        const position = offsets[k] + i;
        const cell = element("button", { type: "button", className: "token" });
        cell.tabIndex = i ? -1 : 0;
        cell.dataset.position = position;
        cell.addEventListener("click", () => choose(position));
        cell.addEventListener("keydown", (event) => {
          const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -w, ArrowDown: w }[event.key];
          const next = step && i + step >= 0 && i + step < h * w && cells[position + step];
          if (!next) return;
          event.preventDefault();
          cell.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        });
        cells.push(cell);
        grid.append(cell);
      }
      map.append(grid, element("p", { textContent: `${k + 1}: ${h}×${w}` }));
      byId("maps").append(map);
    });
  }

  function showMaps() {
    const byEntropy = document.querySelector("[name=colour]:checked").value === "entropy";
    byId("legend").replaceChildren(...(byEntropy
      ? ["0 ", element("span", { className: "scale" }),
         ` ${mostBits.toFixed(1)} bits: any of ${facts.vocab_size} codes`]
      : ["like codes have like colours"]));
    cells.forEach((cell, position) => {
      const code = told(answer, position, "tokens");
      const bits = told(answer, position, "entropy");
      const pinned = position in Settings.state.pins;
      const changed = others.before && told(others.before, position, "tokens") !== code;
      cell.style.background = byEntropy
        ? `color-mix(in srgb, var(--strong) ${(100 * bits) / mostBits}%, var(--weak))`
        : facts.palette[code];
      cell.classList.toggle("pinned", pinned);
      cell.classList.toggle("changed", Boolean(changed) && !pinned);
      cell.setAttribute("aria-pressed", position === chosen);
      const marks = [pinned && "chosen by you", changed && !pinned && "changed"].filter(Boolean);
      cell.ariaLabel = cell.title = [`${place(position)}: code ${code}`, `${bits.toFixed(2)} bits`,
        ...marks].join(", ");
    });
  }

  function choose(position) {
    chosen = position;
    cells.forEach((cell, at) => cell.setAttribute("aria-pressed", at === position));
    inspect();
  }

  function bar(position, code, p, most, current) {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = facts.palette[code];
    const meter = element("meter", { min: 0, max: most, value: p, ariaLabel: "probability" });
    const put = current ? "is here" : element("button", { type: "button",
      textContent: "put here", ariaLabel: `put code ${code} here` });
    if (!current) put.addEventListener("click", () => pin(position, code));
    const cellsOfRow = [element("td", {}, swatch, ` ${code}`),
      element("td", {}, meter), element("td", { textContent: `${(100 * p).toFixed(1)}%` })];
    if (!facts.stored) cellsOfRow.push(element("td", {}, put));
    return element("tr", { className: current ? "current" : "" }, ...cellsOfRow);
  }

  /** What is told of the chosen token. */
  function inspect() {
    const box = byId("inspector");
    if (chosen === null) {
      const hint = { className: "hint", textContent: "No token is chosen yet." };
      box.replaceChildren(element("p", hint));
      return;
    }
    const code = told(answer, chosen, "tokens");
    const p = told(answer, chosen, "probability");
    const codes = told(answer, chosen, "candidates");
    const chances = told(answer, chosen, "candidate_probability");
    const rows = codes.map((other, i) => [other, chances[i]]).filter(([, chance]) => chance > 0);
    if (!rows.some(([other]) => other === code)) rows.push([code, p]);
    const summary = `${place(chosen)}: code ${code}, probability ${(100 * p).toFixed(1)}%, ` +
      `entropy ${told(answer, chosen, "entropy").toFixed(2)} bits`;
    const table = element("table", {},
      element("thead", {}, element("tr", {}, ...["code", "probability", "", ""].map((text) =>
        element("th", { textContent: text })))),
      element("tbody", {}, ...rows.map(([other, chance]) =>
        bar(chosen, other, chance, chances[0], other === code))));
    box.replaceChildren(element("p", { id: "token-summary", textContent: summary }), table);
    if (facts.stored) return;
    const input = element("input", { type: "number", id: "any-code", min: 0,
      max: facts.vocab_size - 1, value: code });
    const put = element("button", { type: "button", id: "put-any", textContent: "Put here" });
    const position = chosen;
    put.addEventListener("click", () => pin(position, Settings.numberOf(input.value)));
    const line = element("div", { className: "buttons" },
      element("label", { htmlFor: "any-code", textContent: "Any other code" }), input, put);
    if (Object.keys(Settings.state.pins).length) {
      const undo = element("button", { type: "button", id: "unpin" }, "Undo all changes");
      undo.addEventListener("click", () => pin(null));
      line.append(undo);
    }
    box.append(line);
  }

  /** Shows an answer; `beside` may hold the answers 'unguided' and 'before'. */
  function show(found, beside) {
    answer = found;
    others = beside;
    if (facts.vocab_size) {
      showMaps();
      inspect();
    }
    showLevel();
  }

  /** `onPin(position, code)` is called for a token that is put; with null for none any more. */
  function start(onPin) {
    pin = onPin;
    for (const id of ["tokens-panel", "inspector-panel", "play-row"]) {
      byId(id).hidden = !facts.vocab_size;
    }
    byId("level").max = byId("level").value = count;
    byId("level").addEventListener("input", () => { stop(); showLevel(); });
    byId("play").addEventListener("click", () => (timer ? stop() : play()));
    document.querySelectorAll("[name=colour]").forEach((input) => {
      input.addEventListener("change", showMaps);
    });
    if (facts.vocab_size) makeMaps();
  }

  return { start, show, play, stop };
})();
