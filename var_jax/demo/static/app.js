// Asks for pictures and shows them.
"use strict";

(() => {
  const facts = window.PAGE;
  const { state } = Settings;
  let waiting = null;
  let newest = 0;
  let first = true;

  /** The answer to a request; stored pages look it up. Raises an Error with a sentence. */
  async function ask(path, body) {
    if (facts.stored) {
      const guided = body.cfg === undefined || [body.cfg].flat().some(Boolean);
      const found = facts.stored[`${body.label}/${body.seed}${guided ? "" : "/unguided"}`];
      const highest = byId("seed").max;
      if (!found) throw new Error(`seed is ${body.seed ?? "missing"}; 0 to ${highest} are stored.`);
      return found;
    }
    let reply;
    try {
      reply = await fetch(path, { method: "POST", body: JSON.stringify(body),
        headers: { "Content-Type": "application/json" } });
    } catch {
      throw new Error("The server does not answer; is launch.demo still running?");
    }
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    return found;
  }

  function say(text, error = "") {
    byId("status").textContent = text;
    byId("error").textContent = error;
    byId("error").hidden = !error;
  }

  /** Runs a request after the one before; of several only the newest is shown. */
  async function show(work) {
    const number = ++newest;
    document.body.classList.add("busy");
    try {
      const began = performance.now();
      const showIt = await work();
      if (number !== newest) return;
      showIt();
      const seconds = ((performance.now() - began) / 1000).toFixed(2);
      say(facts.stored ? "" : `Drawn in ${seconds} s.`);
    } catch (error) {
      if (number === newest) say("", error.message);
    } finally {
      if (number === newest) document.body.classList.remove("busy");
    }
  }

  const setLink = () => history.replaceState(null, "", `#${Settings.toHash()}`);

  function draw() {
    setLink();
    const asked = Settings.drawing();
    return show(async () => {
      const pinned = Boolean(asked.pins?.length);
      const [answer, unguided, before] = await Promise.all([
        ask("draw", asked),
        state.compare && Settings.names.length ? ask("draw", { ...asked, cfg: 0 }) : null,
        pinned ? ask("draw", { ...asked, pins: [] }) : null,
      ]);
      const painted = state.mask && first ? await ask("paint", Settings.painting()) : null;
      return () => {
        Pyramid.show(answer, { unguided, before });
        Paint.setPicture(answer.image);
        byId("python").textContent = answer.python;
        byId("painted-figure").hidden = !painted;
        if (painted) showPainted(painted);
        const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
        if (first && facts.vocab_size && !still) Pyramid.play();
        first = false;
      };
    });
  }

  function showPainted(answer) {
    byId("painted").src = answer.image;
    byId("painted-figure").hidden = false;
    byId("python").textContent = answer.python;
  }

  function paint() {
    setLink();
    return show(async () => {
      const answer = await ask("paint", Settings.painting());
      return () => showPainted(answer);
    });
  }

  function drawSoon() {
    Pyramid.stop();
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  }

  function pin(position, code) {
    const before = state.pins;
    state.pins = position === null ? {} : { ...before, [position]: code };
    draw().then(() => {
      if (byId("error").hidden) return;
      // What was refused is not kept.
      state.pins = before;
      setLink();
    });
  }

  async function copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
      say(`Copied ${what}.`);
    } catch {
      say(`The browser does not let this page copy; here is ${what}: ${text}`);
    }
  }

  function open() {
    Settings.fromHash(location.hash.slice(1));
    Settings.show();
    Paint.fromHex(state.mask);
    first = true;
    draw();
  }

  const [height, width, channels] = facts.image;
  byId("about").textContent = `${facts.name}: ${height}×${width} pixels, ` +
    `${channels === 1 ? "grey" : "colour"}, ` + (facts.prompt_bytes ?
    `any text of up to ${facts.prompt_bytes} bytes` : `${facts.classes.length - 1} classes`) +
    ", levels of " +
    `${facts.levels.map(([h, w]) => `${h}×${w}`).join(", ")} tokens. ${facts.reason}`;
  const absent = [facts.stored ? "[data-served]" : "[data-stored]",
    facts.prompt_bytes ? "[data-classes]" : "[data-text]"];
  document.querySelectorAll(absent.join()).forEach((part) => { part.hidden = true; });
  Settings.start(drawSoon);
  Pyramid.start(pin);
  Paint.start(() => { state.mask = Paint.toHex(); });
  byId("settings").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  byId("paint").addEventListener("click", paint);
  byId("copy").addEventListener("click", () => {
    byId("python-box").open = true;
    copy(byId("python").textContent, "the Python");
  });
  byId("link").addEventListener("click", () => {
    setLink();
    copy(location.href, "the link");
  });
  addEventListener("hashchange", open);
  open();
})();
