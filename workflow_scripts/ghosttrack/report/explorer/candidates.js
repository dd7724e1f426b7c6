"use strict";
// The two candidate answers of a text: ribbons of their strongest tracks across layers, or their attributions across tokens, and below
// the lead of one candidate by all features and by the logit lens. The remark's answer, or else the other candidate, is the lower one.
const candidateAxis = (() => {
  const HALF = 118, LEADS = 96, NODE = 10, TOP = 22, LEFT = 12, RIGHT = 52, LEAST = 40, TOKEN = 26, BELOW = 74;
  const COLOURS = ["var(--cool)", "var(--hot)"];
  const upper = (data) => (data.asserted === 0 ? 1 : 0);
  const colourOf = (data, candidate) => COLOURS[candidate === upper(data) ? 0 : 1];
  const most = (values) => Math.max(1e-9, ...values);
  const cut = (word, letters) => (word.length > letters ? `${word.slice(0, Math.max(1, letters - 1))}\u2026` : word);

  // Distance of every detection from the middle, by track and layer {from, size}; the strongest track is next to the middle.
  function stacked(data, layers) {
    const used = [0, 1].map(() => Array(layers).fill(0));
    return data.tracks.map(([candidate, , first, features, values]) => {
      const spots = new Map();
      features.forEach((feature, step) => {
        if (feature < 0) return;
        const layer = first + step;
        spots.set(layer, { from: used[candidate][layer], size: values[step], feature });
        used[candidate][layer] += values[step];
      });
      return spots;
    });
  }

  // Part of the attribution of a candidate that the shown tracks carry.
  function shown(data, candidate) {
    const all = data.sums[candidate].reduce((sum, each) => sum + each, 0);
    const carried = data.tracks.filter((track) => track[0] === candidate).reduce((sum, track) => sum + track[4].reduce((a, b) => a + b, 0), 0);
    return all > 0 ? carried / all : 0;
  }

  // tools: draw (SVG elements), number, inner (width), layers (names), chosen (track or -1), choose(track, step), name(layer, feature),
  // signed(value).
  function across(data, tools) {
    const { draw, layers } = tools, count = layers.length, spots = stacked(data, count);
    const step = Math.max(LEAST, (tools.inner - LEFT - RIGHT) / count), width = LEFT + step * count + RIGHT;
    const height = TOP + 2 * HALF + LEADS + 34, middle = TOP + HALF, x = (layer) => LEFT + step * layer;
    const tallest = most(spots.flatMap((each) => [...each.values()].map(({ from, size }) => from + size)));
    const side = (candidate) => (candidate === upper(data) ? -1 : 1);
    const y = (candidate, value) => middle + side(candidate) * (3 + ((HALF - 6) * value) / tallest);
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Tracks of the candidate answers by layer" });
    if (tools.chosen >= 0) svg.classList.add("dimmed");
    layers.forEach((name, layer) => svg.append(draw("text", { class: "axis", x: x(layer), y: 12 }, layer || step < 58 ? String(name) : `layer ${name}`)));
    svg.append(draw("path", { class: "middle", d: `M${LEFT} ${middle}H${width - RIGHT}` }));
    const groups = data.tracks.map(([candidate, position], place) => {
      const places = [...spots[place].keys()], chosen = tools.chosen === place;
      const words = [...new Set(places.map((layer) => tools.name(layer, spots[place].get(layer).feature)))].join(", ");
      const said = `${words}; for ${data.answers[candidate]}, at the token ${data.tokens[position - 1][0].trim()}; layers ${layers[places[0]]} to ${layers[places[places.length - 1]]}`;
      const group = draw("g", {
        class: chosen ? "track chosen" : "track", style: `color: ${colourOf(data, candidate)}`, role: "button", "aria-pressed": String(chosen),
        tabindex: place === Math.max(0, tools.chosen) ? 0 : -1, "aria-label": `Candidate track ${place + 1}: ${said}`, "data-candidate": place,
        "data-keep": `candidate ${tools.number} ${place}`, onclick: () => tools.choose(place, null),
        onkeydown: (event) => {
          const move = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
          if (move) { event.preventDefault(); svg.querySelector(`[data-candidate="${Math.min(Math.max(place + move, 0), data.tracks.length - 1)}"]`)?.focus(); }
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); tools.choose(place, null); }
        },
      }, draw("title", {}, said));
      places.forEach((layer, at) => {
        const { from, size } = spots[place].get(layer), near = y(candidate, from), far = y(candidate, from + size);
        if (at + 1 < places.length) {
          const next = spots[place].get(places[at + 1]), x0 = x(layer) + NODE, x1 = x(places[at + 1]), half = (x0 + x1) / 2;
          const near1 = y(candidate, next.from), far1 = y(candidate, next.from + next.size);
          group.append(draw("path", { class: places[at + 1] - layer > 1 ? "band silent" : "band", d: `M${x0} ${near}C${half} ${near} ${half} ${near1} ${x1} ${near1}V${far1}C${half} ${far1} ${half} ${far} ${x0} ${far}Z` }));
        }
        group.append(draw("rect", { class: "node", x: x(layer), y: Math.min(near, far), width: NODE, height: Math.max(1, Math.abs(far - near)), onclick: (event) => { event.stopPropagation(); tools.choose(place, at); } }));
      });
      return group;
    });
    svg.append(...groups);
    // Names of detections that are tall enough, where the name changes along the track.
    data.tracks.forEach(([candidate], place) => {
      let before = "";
      for (const [layer, { from, size, feature }] of spots[place]) {
        const name = tools.name(layer, feature), letters = Math.floor((step - NODE - 8) / 6.2);
        if ((HALF * size) / tallest >= 11 && name !== before && letters > 2)
          svg.append(draw("text", { class: "name", x: x(layer) + NODE + 4, y: (y(candidate, from) + y(candidate, from + size)) / 2 + 4 }, cut(name, letters)));
        before = name;
      }
    });
    leads(svg, data, tools, x, step, TOP + 2 * HALF + 22);
    return svg;
  }

  // The lead of the upper candidate: bars by all features of a layer, dots by the logit lens, and the output's in the last column.
  function leads(svg, data, tools, x, step, top) {
    const { draw, layers } = tools, sign = upper(data) === 0 ? 1 : -1, zero = top + LEADS / 2;
    const bars = layers.map((_, layer) => sign * (data.sums[0][layer] - data.sums[1][layer]));
    const dots = [...data.lens, data.difference].map((value) => (value === null ? null : sign * value));
    const reach = most([...bars, ...dots.filter((value) => value !== null)].map(Math.abs)), y = (value) => zero - ((LEADS / 2 - 10) * value) / reach;
    const colour = (value) => COLOURS[value >= 0 ? 0 : 1];
    svg.append(draw("path", { class: "middle", d: `M${LEFT} ${zero}H${x(layers.length) + NODE}` }));
    bars.forEach((value, layer) => svg.append(draw("rect", { class: "lead", style: `color: ${colour(value)}`, x: x(layer), y: Math.min(zero, y(value)), width: NODE, height: Math.max(1, Math.abs(y(value) - zero)) },
      draw("title", {}, `all features of layer ${layers[layer]}: ${tools.signed(value)} logits`))));
    const known = dots.map((value, place) => ({ value, place })).filter(({ value }) => value !== null);
    svg.append(draw("path", { class: "lens", d: `M${known.map(({ value, place }) => `${x(place) + NODE / 2} ${y(value)}`).join("L")}` }));
    known.forEach(({ value, place }) => {
      const output = place === layers.length;
      svg.append(
        draw("circle", { class: output ? "dot output" : "dot", style: `color: ${colour(value)}`, cx: x(place) + NODE / 2, cy: y(value), r: output ? 5 : 4 }, draw("title", {}, `${output ? "output" : `logit lens of layer ${layers[place]}`}: ${tools.signed(value)} logits`)),
        draw("text", { class: "value", x: x(place) + NODE / 2 + 7, y: y(value) + (value >= 0 ? -4 : 12) }, tools.signed(value)));
    });
    svg.append(
      draw("text", { class: "axis", x: LEFT, y: top - 4 }, `lead of ${cut(data.answers[upper(data)], 24)}, in logits`),
      draw("text", { class: "axis", x: x(layers.length) - 12, y: top - 4 }, "output"));
  }

  // Attribution of every prompt token, mean over layers: two ribbons from the first token to the last.
  function along(data, tools) {
    const { draw } = tools, tokens = data.tokens, up = upper(data);
    const step = Math.max(TOKEN, (tools.inner - 2 * LEFT) / Math.max(1, tokens.length)), width = 2 * LEFT + step * tokens.length;
    const height = TOP + 2 * HALF + BELOW, middle = TOP + HALF, tallest = most(tokens.flatMap(([, stated, other]) => [stated, other]));
    const centre = (token) => LEFT + step * (token + 0.5), size = (value) => ((HALF - 6) * value) / tallest;
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Attribution of the ${tokens.length} prompt tokens to the candidate answers` });
    for (const [candidate, sign] of [[up, -1], [1 - up, 1]]) {
      const points = tokens.map((token, place) => [centre(place), middle + sign * (2 + size(token[1 + candidate]))]);
      let path = `M${LEFT} ${middle + 2 * sign}`, before = [LEFT, middle + 2 * sign];
      for (const point of [...points, [width - LEFT, middle + 2 * sign]]) {
        const half = (before[0] + point[0]) / 2;
        path += `C${half} ${before[1]} ${half} ${point[1]} ${point[0]} ${point[1]}`;
        before = point;
      }
      svg.append(draw("path", { class: "ribbon", style: `color: ${colourOf(data, candidate)}`, d: `${path}Z` }));
    }
    tokens.forEach(([word, stated, other], place) => {
      const x = centre(place), at = TOP + 2 * HALF + 12;
      svg.append(
        draw("rect", { class: "catch", x: x - step / 2, y: TOP, width: step, height: 2 * HALF },
          draw("title", {}, `${word.trim()}: ${stated.toFixed(2)} for ${data.answers[0]}, ${other.toFixed(2)} for ${data.answers[1]}`)),
        draw("text", { class: "axis slanted", x, y: at, transform: `rotate(48 ${x} ${at})` }, cut(word.trim() || "\u00b7", 13)));
    });
    return svg;
  }

  return { across, along, upper, colourOf, shown };
})();
