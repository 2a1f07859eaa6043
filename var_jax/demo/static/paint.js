// The mask that is brushed over a picture.
"use strict";

const Paint = (() => {
  const [rows, columns] = window.PAGE.mask;
  const cells = new Uint8Array(rows * columns);
  const scale = Math.max(1, Math.floor(256 / Math.max(rows, columns)));
  const picture = new Image();
  let changed = () => {};

  /** In hexadecimal, a bit for each cell; '' where nothing is brushed. */
  function toHex() {
    if (!cells.some(Boolean)) return "";
    let text = "";
    for (let at = 0; at < cells.length; at += 8) {
      let byte = 0;
      for (let i = 0; i < 8; i++) byte = 2 * byte + (cells[at + i] ?? 0);
      text += byte.toString(16).padStart(2, "0");
    }
    return text;
  }

  function fromHex(text) {
    cells.fill(0);
    for (let at = 0; at < cells.length && at / 4 < text.length; at++) {
      const digit = parseInt(text[Math.floor(at / 4)], 16) || 0;
      cells[at] = (digit >> (3 - (at % 4))) & 1;
    }
    show();
  }

  function show() {
    const canvas = byId("canvas");
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (picture.complete && picture.naturalWidth) {
      context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    }
    context.fillStyle = "rgb(255 80 120 / 65%)";
    cells.forEach((on, at) => {
      if (!on) return;
      const x = (at % columns) * scale;
      context.fillRect(x, Math.floor(at / columns) * scale, scale, scale);
    });
  }

  /** Marks the cells around a point of the canvas, given in shares of its sides. */
  function brush(x, y) {
    const radius = Number(byId("brush").value) / 2;
    cells.forEach((_, at) => {
      const dx = (at % columns) + 0.5 - x * columns;
      const dy = Math.floor(at / columns) + 0.5 - y * rows;
      if (dx * dx + dy * dy <= radius * radius) cells[at] = 1;
    });
    show();
  }

  const areas = {
    left: (x) => x < 0.5,
    right: (x) => x >= 0.5,
    centre: (x, y) => Math.abs(x - 0.5) < 0.25 && Math.abs(y - 0.5) < 0.25,
    none: () => false,
  };

  function fill(inside) {
    cells.forEach((_, at) => {
      const x = ((at % columns) + 0.5) / columns;
      cells[at] = inside(x, (Math.floor(at / columns) + 0.5) / rows) ? 1 : 0;
    });
    show();
    changed();
  }

  function setPicture(address) {
    if (picture.src !== address) picture.src = address;
  }

  /** `onChange` is called after each stroke. */
  function start(onChange) {
    changed = onChange;
    const canvas = byId("canvas");
    canvas.width = columns * scale;
    canvas.height = rows * scale;
    picture.addEventListener("load", show);
    byId("brush").max = Math.ceil(columns / 2);
    byId("brush").value = Math.ceil(columns / 6);
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      brush((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      at(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) at(event); });
    canvas.addEventListener("pointerup", () => changed());
    document.querySelectorAll("[data-area]").forEach((button) => {
      button.addEventListener("click", () => fill(areas[button.dataset.area]));
    });
  }

  return { start, toHex, fromHex, setPicture };
})();
