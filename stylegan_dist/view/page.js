"use strict";
(() => {
  const id = (name) => document.getElementById(name);
  const token = new URLSearchParams(location.search).get("token");
  const canvas = id("canvas"), pen = canvas.getContext("2d"), note = id("note"), time = id("time");
  const SEEDS = ["seed", "second", "noise_seed"];
  const LARGEST = 16;  // pixels of the screen for one of the picture, in each direction: more is no face any more
  const START = {
    seed: 0, second: 1, blend: 0, psi: 1, label: "", mix_from: 0, mix_to: 0, noise: "const", noise_seed: 0, moves: [],
  };
  let facts, state = {...START}, busy = false, dirty = false;

  const query = () => new URLSearchParams({...state, moves: state.moves.join(","), token}).toString();

  // The picture of the newest state. One request is under way at a time; a change meanwhile asks once more.
  const ask = async () => {
    dirty = true;
    canvas.dataset.state = "older";  // than the controls
    if (busy) return;
    busy = true;
    while (dirty) {
      dirty = false;
      const began = performance.now();
      try {
        const reply = await fetch(`frame?${query()}`);
        if (reply.status === 204) {  // another window was faster
          dirty = true;
          await new Promise((wake) => setTimeout(wake, 30));
        } else if (!reply.ok) {
          note.textContent = await reply.text();
        } else {
          const bitmap = await createImageBitmap(await reply.blob());
          if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
            [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
            canvas.style.aspectRatio = `${bitmap.width} / ${bitmap.height}`;
          }
          pen.clearRect(0, 0, canvas.width, canvas.height);
          pen.drawImage(bitmap, 0, 0);
          bitmap.close();
          note.textContent = "";
          const drawing = /dur=([\d.]+)/.exec(reply.headers.get("Server-Timing") || "");
          const whole = performance.now() - began;
          time.value = `frame ${whole.toFixed(0)} ms${drawing ? `, computed in ${Number(drawing[1]).toFixed(0)} ms` : ""}`;
          if (!dirty) canvas.dataset.state = "newest";
        }
      } catch {
        note.textContent = "no answer: stylegan-dist view has ended";
      }
    }
    busy = false;
  };

  const bounded = (value, most) => Math.min(Math.max(Math.trunc(Number(value)) || 0, 0), most);
  const mixing = () => state.mix_from < state.mix_to;

  // The controls as the state says.
  const show = () => {
    for (const name of SEEDS) {
      if (document.activeElement !== id(name)) id(name).value = state[name];
      id(`${name}-slider`).value = state[name];
    }
    for (const name of ["label", "psi", "blend", "mix_from", "mix_to", "noise"]) id(name).value = state[name];
    for (const name of ["psi", "blend"]) document.querySelector(`output[for=${name}]`).value = state[name].toFixed(2);
    document.querySelector("output[for=mix_from]").value = mixing() ? state.mix_from : "none";
    document.querySelector("output[for=mix_to]").value = mixing() ? state.mix_to - 1 : "none";
    document.querySelectorAll("#moves .row").forEach((row, number) => {
      row.querySelector("input").value = state.moves[number];
      row.querySelector("output").value = state.moves[number].toFixed(1);
    });
    id("noise-row").hidden = state.noise !== "seed";
    id("save").href = `picture.png?${query()}`;
    id("latent").href = `latents.safetensors?${query()}`;
    canvas.setAttribute("aria-label", `the picture of seed ${state.seed}`);
  };
  const change = (values) => {
    Object.assign(state, values);
    sessionStorage.setItem("state", JSON.stringify([facts.digest, state]));
    show();
    ask();
  };
  const step = (name, by) => change({[name]: bounded(state[name] + by, facts.most_seed)});
  const random = () => change({seed: Math.floor(Math.random() * 1e6)});
  const straight = () => change({moves: state.moves.map(() => 0)});

  const slider = (element, set, start) => {
    element.addEventListener("input", () => set(Number(element.value)));
    element.addEventListener("dblclick", () => set(start));
  };

  const listen = () => {
    for (const name of SEEDS) {
      id(name).max = facts.most_seed;
      id(name).addEventListener("input", () => change({[name]: bounded(id(name).value, facts.most_seed)}));
      id(name).addEventListener("blur", show);
      slider(id(`${name}-slider`), (value) => change({[name]: value}), START[name]);
    }
    slider(id("psi"), (psi) => change({psi}), 1);
    slider(id("blend"), (blend) => change({blend}), 0);
    slider(id("mix_from"), (from) => change({mix_from: from, mix_to: Math.max(from, state.mix_to)}), 0);
    slider(id("mix_to"), (to) => change({mix_to: to, mix_from: Math.min(to, state.mix_from)}), 0);
    id("label").addEventListener("change", () => change({label: id("label").value}));
    id("noise").addEventListener("change", () => change({noise: id("noise").value}));
    for (const button of document.querySelectorAll("[data-step]")) {
      const [name, by] = button.dataset.step.split(":");
      button.addEventListener("click", () => step(name, Number(by)));
    }
    id("random").addEventListener("click", random);
    id("straight").addEventListener("click", straight);
    id("reset").addEventListener("click", () => change({...START, moves: Array(facts.moves).fill(0)}));
    id("help").addEventListener("click", () => id("keys").showModal());
    id("controls").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || id("keys").open) return;
      const typing = event.target.matches("input, select");
      const actions = {
        r: random, s: () => id("save").click(), l: () => id("latent").click(), 0: straight, "?": () => id("keys").showModal(),
      };
      const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowDown: -10, ArrowUp: 10};
      if (event.key in steps && !typing) step("seed", steps[event.key]);
      else if (event.key in actions && !event.target.matches("input[type=number], select")) actions[event.key]();
      else return;
      event.preventDefault();
    });
  };

  const build = () => {
    document.title = `${facts.run} – stylegan-dist view`;
    id("run").textContent = facts.run;
    const size = `${facts.resolution} × ${facts.resolution} pixels`;
    id("about").textContent = `${facts.nimg.toLocaleString("en-US")} images of training, ${size}, on ${facts.device}`;
    canvas.classList.toggle("pixels", facts.resolution < 256);
    canvas.style.maxWidth = `${LARGEST * facts.resolution}px`;
    id("classes").hidden = !facts.classes;
    id("truncation").hidden = !facts.truncates;
    id("noises").hidden = !facts.noise;
    id("directions").hidden = !facts.moves;
    id("method").textContent = facts.method === "sefa" ? "of SeFa" : "of GANSpace";
    for (const row of document.querySelectorAll(".mixing")) row.hidden = !facts.layers;
    for (const name of ["mix_from", "mix_to"]) id(name).max = facts.layers;
    id("label").add(new Option("by seed", ""));
    for (let label = 0; label < facts.classes; label += 1) {
      const name = facts.names[label];
      id("label").add(new Option(name === undefined || name === String(label) ? label : `${label}: ${name}`, label));
    }
    for (let number = 0; number < facts.moves; number += 1) {
      const row = document.createElement("div"), name = document.createElement("label");
      const input = document.createElement("input"), output = document.createElement("output");
      row.className = "row";
      name.textContent = `Direction ${number}`;
      name.htmlFor = input.id = `move${number}`;
      Object.assign(input, {type: "range", min: -5, max: 5, step: 0.1});
      output.htmlFor = input.id;
      slider(input, (value) => change({moves: state.moves.map((old, at) => (at === number ? value : old))}), 0);
      row.append(name, input, output);
      id("moves").append(row);
    }
  };

  const start = async () => {
    const reply = await fetch(`facts?token=${token}`);
    if (!reply.ok) throw new Error(await reply.text());
    facts = await reply.json();
    build();
    listen();
    let kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem("state"));
    } catch { /* of another program on this port */ }
    const fits = Array.isArray(kept) && kept[0] === facts.digest && kept[1].moves.length === facts.moves;
    change(fits ? kept[1] : {moves: Array(facts.moves).fill(0)});
  };
  start().catch((error) => { note.textContent = error.message; });
})();
