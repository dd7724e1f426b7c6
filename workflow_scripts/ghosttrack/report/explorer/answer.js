"use strict";
// The token axis: the tracks of consecutive answer tokens, and which tracks continue at the next token.
// A track is [first layer, feature per layer (-1: no detection), level per layer]. It continues if the next token has one of its detections.
const answerAxis = (() => {
  const strength = ([, , levels]) => levels.reduce((sum, level) => sum + level, 0);
  const detections = ([first, features]) => features.map((feature, step) => `${first + step} ${feature}`).filter((_, step) => features[step] >= 0);

  // For each token and track: `next`, the track of the next token with most common detections (ties: the stronger one), -1 without
  // one; `begins`: it shares no detection with the previous token; `chain`, a number common to a track and its continuations.
  function follow(tokens) {
    const owners = tokens.map((tracks) => new Map(tracks.flatMap((track, place) => detections(track).map((key) => [key, place]))));
    let chains = 0;
    const found = tokens.map((tracks) => tracks.map(() => ({ next: -1, begins: true, chain: -1 })));
    tokens.forEach((tracks, token) => {
      tracks.forEach((track, place) => {
        const own = found[token][place];
        if (own.chain < 0) own.chain = chains++;
        if (token + 1 === tokens.length) return;
        const shared = new Map();
        for (const key of detections(track)) {
          const other = owners[token + 1].get(key);
          if (other !== undefined) shared.set(other, (shared.get(other) || 0) + 1);
        }
        const best = [...shared].sort((a, b) => b[1] - a[1] || a[0] - b[0])[0];
        for (const other of shared.keys()) found[token + 1][other].begins = false;
        if (!best) return;
        own.next = best[0];
        // If several tracks continue as one, the chain is that of the strongest.
        if (found[token + 1][best[0]].chain < 0) found[token + 1][best[0]].chain = own.chain;
      });
    });
    return found;
  }

  // Position of every block by token and track {y, height}; the strongest on top, height = sum of levels.
  function layout(tokens, many, size) {
    const shown = tokens.map((tracks) => tracks.slice(0, many).map(strength));
    const tallest = Math.max(1, ...shown.map((column) => column.reduce((sum, each) => sum + each, 0)));
    const room = size.height - size.gap * Math.max(...shown.map((column) => column.length));
    return shown.map((column) => {
      let y = size.top;
      return column.map((each) => {
        const height = Math.max(1.5, (room * each) / tallest);
        y += height + size.gap;
        return { y: y - height - size.gap, height };
      });
    });
  }

  // The drawing: a column per token, a block per track, a band to its continuation; `tools` are functions and state of the page.
  function drawing(text, tools) {
    const { draw, size, many, inner, chosen } = tools;
    const links = follow(text.tracks), spots = layout(text.tracks, many, size), last = text.tracks.length - 1;
    const step = Math.max(size.least, (inner - size.left - size.right) / Math.max(1, last));
    const width = size.left + size.right + step * last, height = size.top + size.height + 6;
    const x = (token) => size.left + step * token;
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Tracks of the answer's ${last + 1} tokens` });
    if (chosen) svg.classList.add("dimmed");
    const most = Math.floor((step - 6) / 6.2);
    text.pieces.forEach((piece, token) => {
      const word = piece.trim() || "\u00b7";
      svg.append(draw("text", { class: token === tools.token ? "axis here" : "axis", x: x(token), y: 12 }, word.length > most ? `${word.slice(0, most - 1)}\u2026` : word));
    });
    const groups = [];
    text.tracks.forEach((tracks, token) => tracks.slice(0, many).forEach((track, place) => {
      const { y, height: tall } = spots[token][place], { next, begins, chain } = links[token][place];
      const here = chosen && chosen.token === token && chosen.place === place, middle = y + tall / 2;
      const fate = [begins && token ? "begins here" : "", token === last ? "" : next < 0 ? "ends here" : "continues at the next token"].filter(Boolean).join(", ");
      const said = `${tools.describe(track)}${fate ? `; ${fate}` : ""}`;
      const group = draw("g", {
        class: here || (chosen && chosen.chain === chain) ? "track chosen" : "track", style: `color: ${tools.tint(track, chain)}`, role: "button",
        tabindex: token === tools.token && place === (chosen ? chosen.place : 0) ? 0 : -1, "aria-pressed": String(Boolean(here)),
        "aria-label": `Token ${text.pieces[token].trim()}, track ${place + 1}: ${said}`, "data-answer": `${token} ${place}`, "data-keep": `answer ${tools.number} ${token} ${place}`,
        onclick: () => tools.choose(token, place),
        onkeydown: (event) => {
          const move = { ArrowDown: [0, 1], ArrowUp: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[event.key];
          if (move) { event.preventDefault(); svg.querySelector(`[data-answer="${token + move[0]} ${place + move[1]}"]`)?.focus(); }
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); tools.choose(token, place); }
        },
      }, draw("title", {}, said));
      if (next >= 0 && next < many) {
        const other = spots[token + 1][next], x0 = x(token) + size.node, x1 = x(token + 1), between = (x0 + x1) / 2;
        group.append(draw("path", { class: "band", d: `M${x0} ${y}C${between} ${y} ${between} ${other.y} ${x1} ${other.y}V${other.y + other.height}C${between} ${other.y + other.height} ${between} ${y + tall} ${x0} ${y + tall}Z` }));
      }
      group.append(draw("rect", { class: "node", x: x(token), y, width: size.node, height: tall, rx: 2 }));
      if (begins && token) group.append(draw("circle", { class: "birth", cx: x(token), cy: middle, r: 3 }));
      if (next < 0 && token < last) group.append(draw("path", { class: "death", d: `M${x(token) + size.node - 3} ${middle - 3}l6 6m0-6l-6 6` }));
      if (tall >= 11 && most > 4) {
        const { name, dense } = tools.name(track), room = Math.floor((step - size.node - 12) / 6.2);
        group.append(draw("text", { class: dense ? "name dense" : "name", x: x(token) + size.node + 6, y: y + Math.min(tall / 2 + 4, 16) }, name.length > room ? `${name.slice(0, room - 1)}\u2026` : name));
      }
      groups.push(group);
    }));
    svg.append(...groups.reverse());
    return svg;
  }

  return { follow, drawing };
})();
