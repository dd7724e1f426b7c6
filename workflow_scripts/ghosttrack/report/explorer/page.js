"use strict";
// The explorer. The content is compressed JSON in the page and is unpacked on demand. It becomes text nodes and
// attributes, never markup.
(() => {
  const byId = (id) => document.getElementById(id);

  // ---- elements: make("p", {class: "note"}, "text", child, ...)
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // ---- packed parts
  const unpacked = new Map();
  function part(name) {
    if (!unpacked.has(name)) {
      const bytes = Uint8Array.from(atob(byId(`part-${name}`).textContent), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      unpacked.set(name, new Response(stream).json());
    }
    return unpacked.get(name);
  }
  async function textOf(number) {
    const block = about.blocks.findLastIndex((first) => first <= number);
    return (await part(`block-${block}`))[number - about.blocks[block]];
  }

  let about, index, names; // names: by layer, features with names, clusters and weights
  const alike = new Map(); // number of texts of each id
  let places; // by layer: feature -> its index in `names` and in the layer's dictionary
  const state = { missing: "", shown: [], current: -1, token: 0, track: null, colour: "surprise", tint: "track", axis: "layers", race: "layers", many: 16, paired: false, context: false };

  // ---- numbers
  const MINUS = "\u2212";
  const fixed = (value, digits) => (value === null ? "\u2013" : value.toFixed(digits).replace("-", MINUS));
  const signed = (value, digits) => (value > 0 ? "+" : "") + fixed(value, digits);
  const percent = (value) => `${(100 * value).toFixed(value < 0.001 ? 3 : value < 0.1 ? 1 : 0)} %`;
  const called = (number) => (index.score[number] === null ? null : index.score[number] >= 0.5 ? 1 : 0);
  const isWrong = (number) => called(number) !== null && called(number) !== index.label[number];
  const LABELS = ["true", "hallucinated"];
  const SWAY = ["misled", "not misled", ""]; // by the number in the index: after a false remark, after a true one

  // ---- the list
  const ROW = 58; // height of a row, as in the style
  const why = new Map();

  function filtered() {
    const words = byId("find").value.trim().toLowerCase();
    const [show, set, label, decision, order] = ["show", "set", "label", "decision", "order"].map((id) => byId(id).value), sway = byId("sway")?.value ?? "";
    const kept = (show === "picks" ? about.picks.map(([number]) => number) : index.id.map((_, number) => number)).filter(
      (number) =>
        (set === "" || index.set[number] === Number(set)) &&
        (label === "" || index.label[number] === Number(label)) &&
        (decision === "" || (called(number) !== null && isWrong(number) === (decision === "wrong"))) &&
        (sway === "" || index.sway[number] === Number(sway)) &&
        (words === "" || index.text[number].toLowerCase().includes(words)),
    );
    const gap = (number) => Math.abs(index.label[number] - index.score[number]);
    const by = {
      high: (a, b) => index.score[b] - index.score[a], low: (a, b) => index.score[a] - index.score[b],
      failures: (a, b) => gap(b) - gap(a), hits: (a, b) => gap(a) - gap(b),
    }[order];
    if (!by) return kept;
    const scored = kept.filter((number) => index.score[number] !== null).sort((a, b) => by(a, b) || a - b);
    return [...scored, ...kept.filter((number) => index.score[number] === null)];
  }

  function refilter() {
    state.shown = filtered();
    const wrong = state.shown.filter(isWrong).length;
    const after = [0, 1].map((number) => state.shown.filter((each) => index.sway[each] === number).length);
    const misled = after[0] + after[1] ? `; ${after[0].toLocaleString("en")} of ${(after[0] + after[1]).toLocaleString("en")} misled after a false remark` : "";
    byId("count").textContent = `${state.shown.length.toLocaleString("en")} texts, ${wrong.toLocaleString("en")} wrong decisions${misled}`;
    byId("rows").style.height = `${ROW * state.shown.length}px`;
    byId("list").scrollTop = 0;
    showRows();
  }

  // Only the visible rows exist in the page.
  function showRows() {
    const list = byId("list");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
    const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW) + 6);
    const rows = [];
    for (let place = first; place < last; place++) rows.push(row(place));
    byId("rows").replaceChildren(...rows);
    const at = state.shown.indexOf(state.current);
    if (at >= first && at < last) list.setAttribute("aria-activedescendant", `row-${at}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function row(place) {
    const number = state.shown[place], score = index.score[number];
    const verdict = score === null ? "not scored" : isWrong(number) ? "wrong" : "right";
    const facts = [
      make("span", { class: "gauge", "aria-hidden": "true" }, score === null ? null : make("i", { style: `left: calc(${100 * score}% - 1px)` })),
      make("span", {}, score === null ? "\u2013" : score.toFixed(2)),
      make("span", { class: verdict }, verdict === "wrong" ? "\u2715 wrong" : verdict === "right" ? "\u2713 right" : verdict),
      make("span", { class: "why" }, [SWAY[index.sway[number]], LABELS[index.label[number]], about.sets[index.set[number]], why.get(number)].filter(Boolean).join(" \u00b7 ")),
    ];
    return make(
      "div",
      {
        class: "row-text", role: "option", id: `row-${place}`, style: `top: ${ROW * place}px`, "aria-selected": String(number === state.current),
        "aria-setsize": state.shown.length, "aria-posinset": place + 1, onclick: () => open(number),
      },
      make("span", { class: "line", dir: "auto" }, index.text[number].slice(0, 300)),
      make("span", { class: "facts" }, ...facts),
    );
  }

  function moveInList(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") return byId("reading").querySelector(".token")?.focus();
    if (!(event.key in steps) || !state.shown.length) return;
    event.preventDefault();
    const place = Math.min(Math.max(state.shown.indexOf(state.current) + steps[event.key], 0), state.shown.length - 1);
    const list = byId("list");
    if (ROW * place < list.scrollTop) list.scrollTop = ROW * place;
    if (ROW * (place + 1) > list.scrollTop + list.clientHeight) list.scrollTop = ROW * (place + 1) - list.clientHeight;
    return open(state.shown[place]);
  }

  // ---- one text
  // The id of a text, after its data set if texts of several have this id.
  const addressOf = (number) => (alike.get(index.id[number]) > 1 ? `${about.sets[index.set[number]]}/${index.id[number]}` : index.id[number]);
  function asked() {
    try { return decodeURIComponent(location.hash.slice(1)); } catch { return location.hash.slice(1); }
  }
  const missing = (name) => (alike.get(name) > 1
    ? `Texts of several data sets have the id ${name}; write the data set before it, such as ${addressOf(index.id.indexOf(name))}.`
    : `This page has no text with the id ${name}; it holds a selection of the texts (How to read this).`);

  async function open(number, token = 0) {
    Object.assign(state, { current: number, token, track: null, missing: number === state.current ? state.missing : "" });
    history.replaceState(null, "", `#${encodeURIComponent(addressOf(number))}`);
    showRows();
    await showText();
  }

  // A part that is unpacked after a newer choice must not replace it.
  let painting = 0;
  async function showText() {
    const mine = ++painting, number = state.current, counterpart = state.paired ? index.counterpart[number] : -1;
    const texts = await Promise.all([number, counterpart].filter((each) => each >= 0).map(async (each) => [each, await textOf(each)]));
    if (mine !== painting) return;
    const focus = focused();
    byId("reading").replaceChildren(
      head(number), controls(number, texts.some(([, text]) => text.pieces.length > 1)),
      make("div", { class: texts.length > 1 ? "columns two" : "columns" }, ...texts.map(([each, text]) => panel(each, text))),
    );
    // Tracks are drawn to the width of their panel, which is known once the panels are in the page.
    for (const [each, text] of texts) if (text.candidates) drawRace(each, text.candidates);
    for (const [each, text] of texts) (state.axis === "tokens" && text.pieces.length > 1 ? drawAnswer : drawTracks)(each, text);
    refocus(focus);
    await showFeature(mine);
    document.body.dataset.shown = `${index.id[number]} ${state.token} ${state.paired ? "counterpart" : "alone"}`;
  }

  const focused = () => document.activeElement?.dataset?.keep;
  const refocus = (keep) => keep && document.querySelector(`[data-keep="${CSS.escape(keep)}"]`)?.focus({ preventScroll: true });

  function head(number) {
    const label = LABELS[index.label[number]], score = index.score[number];
    const decision = score === null ? "not scored by the detector" : `the detector says ${LABELS[called(number)]}`;
    return make(
      "div", { class: "head" },
      state.missing ? make("p", { class: "note", role: "status" }, missing(state.missing)) : null,
      make("h2", {}, `This text is ${label}; ${decision}. `,
        score === null ? null : make("span", { class: isWrong(number) ? "wrong" : "right" }, isWrong(number) ? "\u2715 wrong" : "\u2713 right")),
      make("p", { class: "facts" }, [about.sets[index.set[number]], index.id[number], why.get(number)].filter(Boolean).join(" \u00b7 ")),
    );
  }

  const choose = (id, label, options, key) => {
    const select = make("select", { id, "data-keep": id, onchange: (event) => { state[key] = key === "many" ? Number(event.target.value) : event.target.value; showText(); } },
      ...options.map(([value, text]) => make("option", { value, selected: String(state[key]) === String(value) }, text)));
    return make("label", {}, label, select);
  };

  function controls(number, several) {
    const counterpart = index.counterpart[number];
    const colours = [["surprise", "surprise"], ...(about.probe ? [["probe", "probes"]] : []), ...(about.token ? [["token", "token detector"]] : [])];
    const tints = [["track", "track"], ...(about.clusters ? [["cluster", "cluster"]] : []), ...(about.probe ? [["contribution", "contribution"]] : [])];
    const counts = [8, 16, 24, 40].filter((count) => count < about.most).concat(about.most);
    return make(
      "div", { class: "controls" },
      choose("colour", "Token colour", colours, "colour"), ramp(state.colour),
      several ? choose("axis", "Columns", [["layers", "layers"], ["tokens", "answer tokens"]], "axis") : null,
      choose("tint", "Track colour", tints, "tint"), choose("many", "Tracks", counts.map((count) => [count, String(count)]), "many"),
      counterpart < 0 ? null : make("button", { type: "button", id: "counterpart", "data-keep": "counterpart", "aria-pressed": String(state.paired), onclick: () => { state.paired = !state.paired; showText(); } },
        `Compare with its ${LABELS[index.label[counterpart]]} counterpart`),
    );
  }

  // Values at which the colour of a token saturates.
  const FULL = { surprise: 12, probe: 3, token: 1 };
  function tone(kind, value) {
    if (value === null) return "transparent";
    const share = Math.round(62 * Math.min(1, Math.abs(value) / FULL[kind]));
    return `color-mix(in srgb, var(${value < 0 ? "--cool" : "--hot"}) ${share}%, transparent)`;
  }
  function ramp(kind) {
    const ends = { surprise: ["0", "12 nats"], probe: ["true", "hallucinated"], token: ["below its threshold", "above"] }[kind];
    const stops = kind === "surprise" ? `transparent, ${tone(kind, 12)}` : `${tone(kind, -FULL[kind])}, transparent, ${tone(kind, FULL[kind])}`;
    return make("span", { class: "ramp", "aria-hidden": "true" }, ends[0], make("i", { style: `background: linear-gradient(90deg, ${stops})` }), ends[1]);
  }

  // ---- contexts, hallucinated spans and scores of tokens
  // Whether the token detector calls a token hallucinated; null without a score.
  const calls = (text, place) => (text.token ? text.limit !== null && text.token[place] >= text.limit : null);
  const heat = (text, place) => (!text.token || text.limit === null ? null : (text.token[place] - text.limit) / Math.max(Math.abs(text.limit), 0.05));

  function contextOf(text) {
    if (text.passage === undefined) return null;
    const body = make("p", { dir: "auto" }, "Unpacking\u2026");
    const fold = make("details", { class: "context", open: state.context }, make("summary", { "data-keep": "context" }, "Context: what the model reads before the text"), body);
    const show = async () => {
      const passages = await part(`passages-${Math.floor(text.passage / about.passages)}`);
      body.textContent = passages[text.passage % about.passages];
    };
    fold.addEventListener("toggle", () => { state.context = fold.open; if (fold.open) show(); });
    return fold;
  }

  function verdictOf(text) {
    if (!text.hallucinated) return null;
    const places = text.hallucinated.map((_, place) => place), marked = places.filter((place) => text.hallucinated[place]);
    const called = places.filter((place) => calls(text, place)), both = called.filter((place) => text.hallucinated[place]);
    const said = text.token ? ` The token detector calls ${called.length} hallucinated, ${both.length} of them rightly.` : "";
    return make("p", { class: "facts tokens-verdict" }, `Hallucinated tokens (underlined): ${marked.length} of ${places.length}.${said}`);
  }

  // The characters of a token, with those in hallucinated spans underlined.
  function underlined(text, piece, place) {
    const nodes = [];
    let at = 0;
    for (const [, start, end, probability] of (text.marks || []).filter(([of]) => of === place)) {
      if (start > at) nodes.push(piece.slice(at, start));
      nodes.push(make("u", { class: probability > 0.5 ? "span" : "soft" }, piece.slice(start, end)));
      at = end;
    }
    return [...nodes, piece.slice(at)];
  }

  function panel(number, text) {
    const own = number === state.current;
    const token = Math.min(state.token, text.pieces.length - 1);
    const passage = make("p", { class: "passage", dir: "auto" }, make("span", { class: "context" }, text.before),
      ...text.pieces.map((piece, place) => tokenOf(number, text, piece, place, place === token)), make("span", { class: "context" }, text.after));
    const facts = [
      ["surprise", `${fixed(text.surprise[token], 2)} nats`], ["entropy", `${fixed(text.entropy[token], 2)} nats`],
      ["rank", text.rank[token] === 0 ? "1, the most likely token" : (text.rank[token] + 1).toLocaleString("en")],
      ...(text.probe ? [["probes", text.probe[token] === null ? "\u2013" : signed(text.probe[token], 2)]] : []),
      ...(text.token ? [["token detector", `${fixed(text.token[token], 3)} (threshold ${fixed(text.limit, 3)}): ${LABELS[Number(calls(text, token))]}`]] : []),
      ...(text.hallucinated ? [["label of the token", LABELS[text.hallucinated[token]]]] : []),
      ["score", fixed(index.score[number], 2)],
      ["output score", fixed(index.output[number], 2)],
    ];
    return make(
      "section", { class: "panel", "data-text": number, "aria-label": own ? "Text" : "Counterpart" },
      state.paired ? make("p", { class: "facts whose" }, own ? "This text: " : "Counterpart: ", make("b", {}, LABELS[index.label[number]]),
        own ? null : make("button", { type: "button", "data-keep": "open-counterpart", onclick: () => open(number, state.token) }, "open")) : null,
      contextOf(text),
      passage,
      verdictOf(text),
      text.gold.length && index.label[number] ? make("p", { class: "facts" }, `Accepted answers: ${text.gold.slice(0, 6).join(", ")}`) : null,
      make("div", { class: "figures" }, ...facts.map(([name, value]) => make("div", {}, `${name} `, make("b", {}, value)))),
      text.candidates ? race(number, text.candidates) : null,
      text.candidates ? make("h3", {}, "Tracks of the answer") : null,
      make("div", { class: "drawing of-answer" }), make("div", { class: "marks of-answer" }), make("details", { class: "of-answer" }, make("summary", {}, "Tracks as a table")),
    );
  }

  function tokenOf(number, text, piece, place, chosen) {
    const value = { probe: () => text.probe && text.probe[place], token: () => heat(text, place), surprise: () => text.surprise[place] }[state.colour]();
    const shown = {
      probe: () => `probes ${value === null ? "none" : signed(value, 2)}`, surprise: () => `surprise ${fixed(value, 2)} nats`,
      token: () => (text.token ? `token detector ${fixed(text.token[place], 3)}` : "no token score"),
    }[state.colour]();
    const said = shown + (text.hallucinated && text.hallucinated[place] ? ", hallucinated" : "");
    return make("span", {
      class: piece === "" ? "token part" : "token", role: "button", tabindex: chosen ? 0 : -1, "aria-pressed": String(chosen),
      "aria-label": `${piece || "part of the previous character"}: ${said}`, title: said, "data-place": place, "data-keep": `${number} ${place}`,
      style: `background: ${tone(state.colour, value)}`, onclick: () => chooseToken(number, place),
      onkeydown: (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) { event.preventDefault(); event.currentTarget.parentNode.querySelector(`[data-place="${place + step}"]`)?.focus(); }
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); chooseToken(number, place); }
      },
    }, ...underlined(text, piece, place));
  }

  function chooseToken(number, place) {
    Object.assign(state, { token: place, track: null });
    return showText();
  }

  // ---- tracks: a column per layer, the strongest feature on top, a band between consecutive detections of a track
  const SIZE = { height: 380, node: 12, gap: 3, top: 22, left: 10, right: 90, least: 58, beside: 38 };

  const nameOf = (layer, feature) => names[layer].name[places[layer].get(feature)] || `feature ${feature}`;
  const clusterOf = (layer, feature) => (names[layer].cluster ? names[layer].cluster[places[layer].get(feature)] : "");
  // Log-odds that one detection adds to the text's score: weight x activation, averaged over the answer tokens.
  function contribution(text, layer, feature, level) {
    const weights = names[layer].weight && names[layer].weight[text.fit];
    return weights && feature >= 0 ? (weights[places[layer].get(feature)] * (level / about.levels) * about.scale[layer]) / text.pieces.length : 0;
  }
  const stepsOf = ([first, features, levels]) =>
    features.map((feature, step) => ({ layer: first + step, feature, level: levels[step] })).filter((each) => each.feature >= 0);
  const total = (text, track) => stepsOf(track).reduce((sum, each) => sum + contribution(text, each.layer, each.feature, each.level), 0);

  function tint(text, track, place) {
    if (state.tint === "contribution") {
      const value = total(text, track), share = Math.round(100 * Math.min(1, Math.abs(value) / 0.2));
      return `color-mix(in srgb, var(${value < 0 ? "--cool" : "--hot"}) ${share}%, var(--rest))`;
    }
    if (state.tint === "cluster") {
      const name = clusterOf(stepsOf(track)[0].layer, stepsOf(track)[0].feature);
      return name === "" ? "var(--rest)" : `var(--t${[...name].reduce((sum, letter) => (31 * sum + letter.codePointAt(0)) % 1e9, 7) % 10})`;
    }
    return place < 10 ? `var(--t${place})` : "var(--rest)";
  }

  // Whether a track of the text's answer is chosen, not one of its candidates.
  const ownTrack = (number) => state.track && !state.track.candidate && state.track.number === number;

  function drawTracks(number, text) {
    const box = document.querySelector(`[data-text="${number}"]`);
    const token = Math.min(state.token, text.pieces.length - 1);
    const tracks = text.tracks[token].slice(0, state.many), layers = about.layers.length;
    // Position of every detection: sorted by activation within its layer.
    const columns = Array.from({ length: layers }, () => []);
    tracks.forEach((track, place) => stepsOf(track).forEach((step) => columns[step.layer].push({ place, ...step })));
    columns.forEach((column) => column.sort((a, b) => b.level - a.level || a.place - b.place));
    const tallest = Math.max(1, ...columns.map((column) => column.reduce((sum, each) => sum + each.level, 0)));
    const room = SIZE.height - SIZE.gap * Math.max(...columns.map((column) => column.length));
    const spots = tracks.map(() => new Map());
    columns.forEach((column) => {
      let y = SIZE.top;
      for (const each of column) {
        const height = Math.max(1.5, (room * each.level) / tallest);
        spots[each.place].set(each.layer, { y, height, step: each });
        y += height + SIZE.gap;
      }
    });
    const inner = box.querySelector(".drawing.of-answer").clientWidth - 18;
    const step = Math.max(state.paired ? SIZE.beside : SIZE.least, (inner - SIZE.left - SIZE.right) / Math.max(1, layers - 1));
    const width = SIZE.left + SIZE.right + step * (layers - 1), height = SIZE.top + SIZE.height + 6;
    const x = (layer) => SIZE.left + step * layer;
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Tracks of the token ${text.pieces[token].trim()}: ${tracks.length} strongest of ${text.total[token]}` });
    if (ownTrack(number)) svg.classList.add("dimmed");
    about.layers.forEach((name, layer) => svg.append(draw("text", { class: "axis", x: x(layer), y: 12 }, layer ? String(name) : `layer ${name}`)));
    const drawn = tracks.map((track, place) => oneTrack(number, text, token, track, place, spots[place], x, tracks.length));
    // The strongest are appended last and lie on top; keyboard order stays by strength.
    svg.append(...drawn.slice().reverse());
    tracks.forEach((track, place) => labels(svg, spots[place], x, step));
    box.querySelector(".drawing.of-answer").replaceChildren(svg);
    box.querySelector(".marks.of-answer").replaceChildren(...legend(tracks.length, text.total[token]));
    tabulate(box.querySelector("details.of-answer"), number, text, token, tracks);
  }

  // The token axis: tracks of all answer tokens, or of SPAN tokens around the chosen one; see answer.js.
  const SPAN = 24;
  function drawAnswer(number, text) {
    const box = document.querySelector(`[data-text="${number}"]`);
    const token = Math.min(state.token, text.pieces.length - 1), own = ownTrack(number) ? state.track : null;
    const first = Math.max(0, Math.min(token - SPAN / 2, text.pieces.length - SPAN)), at = token - first;
    const part = { pieces: text.pieces.slice(first, first + SPAN), tracks: text.tracks.slice(first, first + SPAN) };
    const svg = answerAxis.drawing(part, {
      draw, number, token: at, size: SIZE, many: state.many, inner: box.querySelector(".drawing.of-answer").clientWidth - 18,
      chosen: own && { token: at, place: own.place, chain: answerAxis.follow(part.tracks)[at][own.place].chain },
      tint: (track, chain) => tint(text, track, chain), describe: (track) => describe(text, track),
      name: (track) => {
        const { layer, feature } = stepsOf(track).reduce((best, each) => (each.level > best.level ? each : best));
        return { name: nameOf(layer, feature), dense: names[layer].dense[places[layer].get(feature)] };
      },
      choose: (place, track) => { state.token = first + place; return chooseTrack(number, track); },
    });
    box.querySelector(".drawing.of-answer").replaceChildren(svg);
    box.querySelector(".marks.of-answer").replaceChildren(...legend(Math.min(state.many, text.tracks[token].length), text.total[token]),
      make("span", {}, `a band leads to the track of the next token that shares most features, among the ${about.most} strongest`));
    tabulate(box.querySelector("details.of-answer"), number, text, token, text.tracks[token].slice(0, state.many));
  }

  // ---- the two candidate answers; see candidates.js
  const role = (data, candidate) => [data.truth[candidate] ? "true" : "false", candidate ? "" : "stated", data.asserted === candidate ? "asserted by the remark" : ""].filter(Boolean).join(", ");

  function race(number, data) {
    const preferred = data.difference >= 0 ? 0 : 1, remark = data.asserted < 0 ? "" : `The remark asserts \u201c${data.answers[data.asserted]}\u201d, which is ${data.truth[data.asserted] ? "true" : "false"}. `;
    const output = `The output prefers \u201c${data.answers[preferred]}\u201d by ${fixed(Math.abs(data.difference), 1)} logits`;
    const end = data.asserted < 0 ? "." : preferred !== data.asserted ? ": it does not follow the remark." : data.truth[preferred] ? ": it follows the remark." : ": it is misled.";
    return make(
      "section", { class: "race", "aria-label": "Candidate answers" },
      make("h3", {}, "Candidate answers"),
      make("p", { class: "facts" }, remark, output, end),
      make("div", { class: "controls" }, choose("race-axis", "Columns", [["layers", "layers"], ["tokens", "prompt tokens"]], "race")),
      make("div", { class: "drawing of-candidates" }), make("div", { class: "marks of-candidates" }), make("details", { class: "of-candidates" }, make("summary", {}, "Candidate answers as a table")),
    );
  }

  function drawRace(number, data) {
    const box = document.querySelector(`[data-text="${number}"] .race`), place = box.querySelector(".drawing");
    const chosen = state.track && state.track.candidate && state.track.number === number ? state.track.place : -1;
    place.replaceChildren(candidateAxis[state.race === "tokens" ? "along" : "across"](data, {
      draw, number, inner: place.clientWidth - 18, layers: about.layers, chosen, name: nameOf, signed: (value) => signed(value, 1),
      choose: (track, step) => { state.track = { number, place: track, step, candidate: true }; return showText(); },
    }));
    const first = candidateAxis.upper(data), share = (candidate) => `${Math.round(100 * candidateAxis.shown(data, candidate))} %`;
    const key = (candidate) => make("span", {}, make("i", { class: "key", style: `background: ${candidateAxis.colourOf(data, candidate)}` }), make("b", {}, data.answers[candidate]), ` (${role(data, candidate)})`);
    const lower = 1 - first;
    place.nextSibling.replaceChildren(key(first), key(lower), ...(state.race === "tokens"
      ? [make("span", {}, "height = attribution of the token in favour of the candidate, all features, mean over layers")]
      : [make("span", {}, `ribbons = strongest tracks of each candidate; height = attribution in logits; they carry ${share(first)} and ${share(lower)} of it`),
         make("span", {}, `below: lead of \u201c${data.answers[first]}\u201d in logits; bars = all features of a layer, dots = logit lens, last dot = output`)]));
    tabulateRace(box.querySelector("details"), data);
  }

  function tabulateRace(details, data) {
    details.addEventListener("toggle", () => {
      if (!details.open || details.querySelector("table")) return;
      const head = ["layer", `all features for ${data.answers[0]}`, `for ${data.answers[1]}`, `logit lens: lead of ${data.answers[0]}`];
      const rows = about.layers.map((name, layer) => [data.sums[0][layer], data.sums[1][layer], data.lens[layer]].reduce((line, value) => (line.append(make("td", {}, fixed(value, 2))), line), make("tr", {}, make("th", { scope: "row" }, String(name)))));
      rows.push(make("tr", {}, make("th", { scope: "row" }, "output"), make("td", {}, ""), make("td", {}, ""), make("td", {}, fixed(data.difference, 2))));
      details.append(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Candidate answers" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, ...rows))));
    });
  }

  function oneTrack(number, text, token, track, place, spots, x, count) {
    const layers = [...spots.keys()], first = layers[0], last = layers[layers.length - 1];
    const chosen = ownTrack(number) && state.track.place === place;
    const said = describe(text, track);
    const group = draw("g", {
      class: chosen ? "track chosen" : "track", style: `color: ${tint(text, track, place)}`, role: "button", "aria-pressed": String(Boolean(chosen)),
      tabindex: place === (ownTrack(number) ? state.track.place : 0) ? 0 : -1, "aria-label": `Track ${place + 1}: ${said}`,
      "data-track": place, "data-keep": `track ${number} ${place}`, onclick: () => chooseTrack(number, place),
      onkeydown: (event) => {
        const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
        if (step) { event.preventDefault(); event.currentTarget.parentNode.querySelector(`[data-track="${Math.min(Math.max(place + step, 0), count - 1)}"]`)?.focus(); }
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); chooseTrack(number, place); }
      },
    }, draw("title", {}, said));
    for (let at = 1; at < layers.length; at++) {
      const a = spots.get(layers[at - 1]), b = spots.get(layers[at]);
      const x0 = x(layers[at - 1]) + SIZE.node, x1 = x(layers[at]), middle = (x0 + x1) / 2;
      const path = `M${x0} ${a.y}C${middle} ${a.y} ${middle} ${b.y} ${x1} ${b.y}V${b.y + b.height}C${middle} ${b.y + b.height} ${middle} ${a.y + a.height} ${x0} ${a.y + a.height}Z`;
      group.append(draw("path", { class: layers[at] - layers[at - 1] > 1 ? "band silent" : "band", d: path }));
    }
    for (const layer of layers) {
      const { y, height } = spots.get(layer);
      const open = (event) => { event.stopPropagation(); chooseTrack(number, place, layers.indexOf(layer)); };
      group.append(draw("rect", { class: "node", x: x(layer), y, width: SIZE.node, height, rx: 2, onclick: open }));
    }
    if (first > 0) group.append(draw("circle", { class: "birth", cx: x(first), cy: spots.get(first).y + spots.get(first).height / 2, r: 3 }));
    if (last < about.layers.length - 1) {
      const cx = x(last) + SIZE.node, cy = spots.get(last).y + spots.get(last).height / 2;
      group.append(draw("path", { class: "death", d: `M${cx - 3} ${cy - 3}l6 6m0-6l-6 6` }));
    }
    return group;
  }

  // Names of blocks that are tall enough, where the name changes along the track.
  function labels(svg, spots, x, step) {
    let before = "";
    for (const [layer, { y, height, step: each }] of spots) {
      const name = nameOf(each.layer, each.feature), most = Math.floor((step - SIZE.node - 12) / 6.2);
      if (height >= 11 && name !== before && most > 2)
        svg.append(draw("text", { class: names[layer].dense[places[layer].get(each.feature)] ? "name dense" : "name", x: x(layer) + SIZE.node + 6, y: y + Math.min(height / 2 + 4, 16) }, name.length > most ? `${name.slice(0, most - 1)}\u2026` : name));
      before = name;
    }
  }

  function legend(count, all) {
    const sign = (shape, text) => make("span", {}, shape, text);
    const icon = (...shapes) => draw("svg", { viewBox: "0 0 16 12", "aria-hidden": "true" }, ...shapes);
    return [
      make("span", {}, `${count} strongest of ${all} tracks; height = activation`),
      sign(icon(draw("circle", { cx: 8, cy: 6, r: 3.5, fill: "none", stroke: "currentColor", "stroke-width": 1.6 })), "birth"),
      sign(icon(draw("path", { d: "M4 2l8 8m0-8l-8 8", stroke: "currentColor", "stroke-width": 1.8, fill: "none" })), "death"),
      state.axis === "layers" ? sign(icon(draw("path", { d: "M0 3h16M0 9h16", stroke: "currentColor", "stroke-dasharray": "3 3", fill: "none" })), "layer without a detection") : "",
      make("span", {}, "italic = dense feature, active on more than 10 % of tokens: its name says little"),
      ...(state.tint === "contribution" ? [make("span", {}, "orange = towards hallucinated, blue = towards true, grey = neither")] : []),
    ];
  }

  function describe(text, track) {
    const steps = stepsOf(track), layers = steps.map((each) => about.layers[each.layer]);
    const found = [...new Set(steps.map((each) => nameOf(each.layer, each.feature)))];
    const span = layers.length > 1 ? `layers ${layers[0]} to ${layers[layers.length - 1]}` : `layer ${layers[0]}`;
    const added = about.probe ? `, ${signed(total(text, track), 3)} to the log-odds` : "";
    return `${found.join(", ")}; ${span}${added}`;
  }

  // The same content as a table for screen readers; built when it is opened.
  function tabulate(details, number, text, token, tracks) {
    details.addEventListener("toggle", () => {
      if (!details.open || details.querySelector("table")) return;
      const rows = tracks.map((track, place) => {
        const steps = stepsOf(track);
        return make("tr", {}, make("th", { scope: "row" }, make("button", { type: "button", onclick: () => chooseTrack(number, place) }, String(place + 1))),
          make("td", { class: "text" }, steps.map((each) => `${about.layers[each.layer]}: ${nameOf(each.layer, each.feature)} (${each.feature}), ${(each.level / about.levels).toFixed(2)}`).join("; ")),
          about.probe ? make("td", {}, signed(total(text, track), 3)) : null);
      });
      details.append(make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Tracks" }, make("table", {}, make("thead", {}, make("tr", {},
        make("th", { scope: "col" }, "track"), make("th", { scope: "col", class: "text" }, "layer: name (feature), activation / mean activation of the layer"),
        about.probe ? make("th", { scope: "col" }, "log-odds") : null)), make("tbody", {}, ...rows))));
    });
  }

  // ---- the feature
  function chooseTrack(number, place, step = null) {
    state.track = { number, place, step };
    return showText();
  }

  async function showFeature(mine) {
    const pane = byId("feature"), chosen = state.track;
    if (!chosen) return pane.replaceChildren(make("p", { class: "note" }, "Select a track in the drawing to see its features."));
    const text = await textOf(chosen.number), token = Math.min(state.token, text.pieces.length - 1);
    const rival = chosen.candidate ? text.candidates.tracks[chosen.place] : null;
    const track = rival ? rival.slice(2) : text.tracks[token][chosen.place], steps = stepsOf(track);
    // Shows the strongest detection first; buttons show the others.
    const at = chosen.step ?? steps.reduce((best, each, place) => (each.level > steps[best].level ? place : best), 0);
    const { layer, feature, level } = steps[at];
    const layerPart = await part(`layer-${layer}`);
    if (mine !== painting) return null;
    const focus = focused(), place = places[layer].get(feature);
    const chips = (pairs, unit) => make("ul", { class: "chips" }, ...pairs.map(([word, value]) => make("li", { dir: "auto" }, visible(word), make("small", {}, ` ${unit(value)}`))));
    const added = contribution(text, layer, feature, level);
    pane.replaceChildren(
      make("p", { class: "kicker" }, rival
        ? `Track for \u201c${text.candidates.answers[rival[0]]}\u201d at the prompt token \u201c${text.candidates.tokens[rival[1] - 1][0].trim()}\u201d`
        : `Track ${chosen.place + 1} of the token \u201c${text.pieces[token].trim()}\u201d`),
      make("h2", {}, nameOf(layer, feature)),
      make("div", { class: "steps", role: "group", "aria-label": "Features of this track" }, ...steps.map((each, number) => make("button",
        { type: "button", "aria-pressed": String(number === at), "data-keep": `step ${number}`, onclick: () => { state.track = { ...chosen, step: number }; return showText(); } }, `layer ${about.layers[each.layer]}`))),
      make("div", { class: "figures" }, ...[
        ["layer", String(about.layers[layer])], ["feature", String(feature)], rival ? ["attribution here", `${level.toFixed(2)} logits`] : ["activation here", `${(level / about.levels).toFixed(2)} \u00d7 the layer's mean`],
        ["active on", `${percent(layerPart.density[place])} of held-out tokens`],
        ...(about.probe && !rival ? [["adds to the log-odds", signed(added, 3)]] : []),
        ...(layerPart.cluster && layerPart.cluster[place] !== "" ? [["cluster", layerPart.cluster[place]]] : []),
      ].map(([name, value]) => make("div", {}, `${name} `, make("b", {}, value)))),
      make("h3", {}, "Fires on (fraction of its activation)"),
      layerPart.top[place].length ? chips(layerPart.top[place], percent) : make("p", { class: "note" }, "Never active on the held-out text."),
      make("h3", {}, "Promotes (logit per unit of activation)"),
      layerPart.output[place].length ? chips(layerPart.output[place], (value) => signed(value, 1)) : make("p", { class: "note" }, "Not available for this model."),
      make("h3", {}, "Top contexts in held-out text"),
      make("ul", { class: "contexts" }, ...layerPart.contexts[place].map(([window, activation]) => {
        const [before, word, after] = layerPart.windows[window];
        return make("li", { dir: "auto" }, before, make("mark", {}, word), after, make("small", {}, `  ${activation.toFixed(1)}`));
      })),
    );
    refocus(focus);
    return null;
  }

  const visible = (word) => word.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");

  // ---- the page
  function dark() {
    const root = document.documentElement;
    const now = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = now ? "light" : "dark";
    byId("theme").setAttribute("aria-pressed", String(!now));
  }

  async function start() {
    [about, index, names] = await Promise.all(["about", "index", "names"].map(part));
    places = names.map((layer) => new Map(layer.feature.map((feature, place) => [feature, place])));
    state.colour = about.probe ? "probe" : "surprise";
    state.tint = about.clusters ? "cluster" : "track";
    for (const [number, reason] of about.picks) why.set(number, reason);
    byId("set").append(...about.sets.map((name, place) => make("option", { value: place }, name)));
    if (!about.picks.length) byId("show").value = "all";
    byId("theme").setAttribute("aria-pressed", String(matchMedia("(prefers-color-scheme: dark)").matches));
    byId("theme").addEventListener("click", dark);
    byId("words-button").addEventListener("click", () => {
      byId("words").hidden = !byId("words").hidden;
      byId("words-button").setAttribute("aria-expanded", String(!byId("words").hidden));
    });
    byId("find").addEventListener("input", () => { if (byId("find").value.trim()) byId("show").value = "all"; }); // search all texts
    byId("filters").addEventListener("input", refilter);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("list").addEventListener("scroll", showRows);
    byId("list").addEventListener("keydown", moveInList);
    let late;
    addEventListener("resize", () => { clearTimeout(late); late = setTimeout(() => { showRows(); showText(); }, 120); });
    for (const id of index.id) alike.set(id, (alike.get(id) || 0) + 1);
    const found = index.id.findIndex((_, number) => addressOf(number) === asked());
    refilter();
    const first = found >= 0 ? found : (state.shown[0] ?? 0);
    if (found < 0 && location.hash.length > 1) Object.assign(state, { current: first, missing: asked() });
    await open(first);
    document.body.dataset.ready = String(Math.round(performance.now()));
  }

  start().catch((error) => {
    byId("reading").replaceChildren(make("p", {}, `The content could not be unpacked: ${error.message}. Use a browser of 2023 or later.`));
    throw error;
  });
})();
