// What can be set: the controls, and the link that holds all of it.
"use strict";

const byId = (id) => document.getElementById(id);

/** An element with properties and children. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const Settings = (() => {
  const facts = window.PAGE;
  const count = facts.levels.length;
  const last = facts.classes.length - 1;
  const byText = facts.prompt_bytes > 0;
  const prompts = ["prompt", "negative", "paint_prompt"];
  const texts = {
    cfg: ["Guidance", 0.1, 10, byText ?
      "how much more the prompt counts than what it should not be; 0 is none" :
      "how much more the class counts than no class; 0 is none"],
    top_k: ["Top-k", 1, null, "only the k likeliest codes; 0 is all"],
    top_p: ["Top-p", 0.01, 1, "only codes that make up this probability; 0 is all"],
    temperature: ["Temperature", 0.05, 3, "below 1 is safer, above it bolder"],
  };
  const names = Object.keys(facts.settings);
  const rows = {};

  /** The values with which the page opens. */
  function defaults() {
    const own = structuredClone(facts.settings);
    const asked = byText ? { prompt: "", negative: "", paint_prompt: "" } :
      { label: 0, paint_label: 0 };
    return { ...asked, seed: 0, ...own, pins: {}, compare: false, mask: "", paint_seed: 0 };
  }

  const state = defaults();

  const promptBox = (name) => byId(name.replace("_", "-"));

  // An empty or wrong number box is null, which the server answers with a sentence.
  const numberOf = (text) => (text === "" ? null : Number(text));

  function addRow(name, changed) {
    const [title, step, high, why] = texts[name];
    const [low, most] = facts.ranges[name];
    const id = `set-${name}`;
    const slider = element("input", { type: "range", min: low, max: high ?? most, step,
      ariaLabel: `${title}, slider` });
    const box = element("input", { id, type: "number", min: low, max: most, step: "any" });
    const each = element("input", { type: "checkbox", id: `${id}-each` });
    const levels = element("div", { className: "each", id: `${id}-levels` });
    for (let k = 0; k < count; k++) {
      const input = element("input", { type: "number", min: low, max: most, step: "any",
        id: `${id}-${k}`, ariaLabel: `${title} of level ${k + 1}`,
        title: `level ${k + 1}` });
      input.addEventListener("input", () => {
        state[name] = state[name].with(k, numberOf(input.value));
        changed();
      });
      levels.append(input);
    }
    for (const input of [slider, box]) {
      input.addEventListener("input", () => {
        state[name] = numberOf(input.value);
        show(input);
        changed();
      });
    }
    each.addEventListener("change", () => {
      const value = state[name];
      if (each.checked) {
        // One strength of guidance grows over the levels; so do the numbers that stand for it.
        const grows = name === "cfg" && facts.cfg_schedule === "linear" && count > 1;
        state[name] = facts.levels.map((_, k) =>
          grows ? Number(((value * k) / (count - 1)).toFixed(3)) : value);
      } else {
        state[name] = value[count - 1];
      }
      show();
      changed();
    });
    const one = element("div", { className: "one" }, slider, box);
    byId("sliders").append(element("div", { className: "setting" },
      element("label", { htmlFor: id, textContent: title }),
      element("label", { className: "check" }, each, " each level"),
      one, levels, element("p", { className: "why", textContent: why })));
    rows[name] = { slider, box, each, one, levels };
  }

  /** Writes the state into the controls, but not into the one that is being typed in. */
  function show(typing = null) {
    const put = (input, value) => { if (input !== typing) input.value = value ?? ""; };
    if (byText) prompts.forEach((name) => put(promptBox(name), state[name]));
    else {
      put(byId("label"), state.label);
      put(byId("paint-label"), state.paint_label);
    }
    put(byId("seed"), state.seed);
    put(byId("paint-seed"), state.paint_seed);
    byId("compare").checked = state.compare;
    for (const [name, row] of Object.entries(rows)) {
      const several = Array.isArray(state[name]);
      row.each.checked = several;
      row.one.hidden = several;
      row.levels.hidden = !several;
      if (several) {
        [...row.levels.children].forEach((input, k) => {
          if (input !== document.activeElement) put(input, state[name][k]);
        });
      } else {
        put(row.slider, state[name]);
        put(row.box, state[name]);
      }
    }
  }

  /** The link's part behind '#': what differs from the values that the page opens with. */
  function toHash() {
    const own = defaults();
    const found = new URLSearchParams();
    const join = (value) => (Array.isArray(value) ? value.join("_") : String(value));
    const pairs = (pins) => Object.entries(pins).map(([at, code]) => `${at}.${code}`);
    const textOf = (values, name) => join(name === "pins" ? pairs(values.pins) : values[name]);
    for (const name of Object.keys(own)) {
      const text = textOf(state, name);
      const usual = textOf(own, name);
      if (text !== usual || ["label", "prompt", "seed"].includes(name)) found.set(name, text);
    }
    return found.toString();
  }

  /** The state that a link holds. What it cannot mean is left to the server to refuse. */
  function fromHash(hash) {
    const own = defaults();
    Object.assign(state, own);
    for (const [name, text] of new URLSearchParams(hash)) {
      if (!(name in own)) continue;
      if (name === "mask" || prompts.includes(name)) state[name] = text;
      else if (name === "compare") state.compare = text === "true";
      else if (name === "pins") {
        state.pins = Object.fromEntries(text.split("_").filter(Boolean)
          .map((pair) => pair.split(".").map(Number)));
      } else if (text.includes("_")) state[name] = text.split("_").map(numberOf);
      else state[name] = numberOf(text);
    }
  }

  /** What the server is asked to draw. */
  function drawing() {
    const asked = byText ? { prompt: state.prompt, negative: state.negative, seed: state.seed } :
      { label: state.label, seed: state.seed };
    if (names.length) {
      asked.pins = Object.entries(state.pins).map(([at, code]) => [Number(at), code]);
    }
    for (const name of names) asked[name] = state[name];
    return asked;
  }

  /** What the server is asked to draw where the mask is brushed. */
  const painting = () => ({
    drawing: drawing(), mask: state.mask, seed: state.paint_seed,
    ...(byText ? { prompt: state.paint_prompt } : { label: state.paint_label }),
  });

  /** What the picture shows, in words. */
  const asked = () => (byText ? state.prompt || "nothing" :
    `class ${facts.classes[state.label]}`);

  function option(label) {
    const name = facts.classes[label];
    const text = name === String(label) || label === last ? name : `${label}: ${name}`;
    return element("option", { value: label, textContent: text });
  }

  /** Fills the controls; `changed` is called after each change of a setting of the drawing. */
  function start(changed) {
    const stored = facts.stored && Object.keys(facts.stored).map((key) => key.split("/"));
    const labels = stored ? [...new Set(stored.map((key) => key[0]))] : [...facts.classes.keys()];
    byId("label").append(...labels.map((label) => option(Number(label))));
    byId("paint-label").append(...[...facts.classes.keys()].map(option));
    byId("seed").max = stored ? Math.max(...stored.map((key) => key[1])) : facts.max_seed;
    byId("paint-seed").max = facts.max_seed;
    if (!stored) names.forEach((name) => addRow(name, changed));
    byId("label").addEventListener("change", () => {
      // What is painted is of the picture's class until another is chosen.
      if (state.paint_label === state.label) state.paint_label = Number(byId("label").value);
      state.label = Number(byId("label").value);
      show();
      changed();
    });
    if (byText) prompts.forEach((name) => {
      promptBox(name).addEventListener("input", () => {
        const value = promptBox(name).value;
        // See the class.
        if (name === "prompt" && state.paint_prompt === state.prompt) state.paint_prompt = value;
        state[name] = value;
        show(promptBox(name));
        if (name !== "paint_prompt") changed();
      });
    });
    byId("seed").addEventListener("input", () => {
      state.seed = numberOf(byId("seed").value);
      changed();
    });
    byId("next-seed").addEventListener("click", () => {
      const highest = Number(byId("seed").max);
      state.seed = state.seed >= highest ? 0 : (state.seed ?? -1) + 1;
      show();
      changed();
    });
    byId("paint-label").addEventListener("change", () => {
      state.paint_label = Number(byId("paint-label").value);
    });
    byId("paint-seed").addEventListener("input", () => {
      state.paint_seed = numberOf(byId("paint-seed").value);
    });
    byId("compare").addEventListener("change", () => {
      state.compare = byId("compare").checked;
      changed();
    });
    byId("reset").addEventListener("click", () => {
      Object.assign(state, defaults());
      show();
      changed();
    });
    byId("compare-row").hidden = !names.length;
    byId("more").hidden ||= !names.length;
    // On a small screen the picture comes first.
    byId("more").open = matchMedia("(min-width: 46rem)").matches;
  }

  return { state, numberOf, start, show, toHash, fromHash, drawing, painting, asked, names };
})();
