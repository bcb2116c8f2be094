"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [width, height, left, right, top, bottom] = data.box;
  const id = (name) => document.getElementById(name);
  const slider = id("slider"), now = id("now"), play = id("play"), best = id("best"), full = id("full"), reals = id("reals");
  document.documentElement.classList.add("js");

  // The newest entry of [kimg, ...] that is not after `kimg`; the first if all are.
  const upTo = (rows, kimg) => {
    let low = 0, high = rows.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (rows[middle][0] <= kimg) low = middle; else high = middle - 1;
    }
    return low;
  };
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
  };

  // As `values.number` writes them.
  const show = (value) => {
    if (value === null || value === undefined) return "NaN";
    if (value === 0) return "0";
    const size = Math.abs(value);
    let text;
    if (size >= 1e-3 && size < 1e7) {
      text = value.toLocaleString("en-US", {maximumFractionDigits: Math.max(3 - Math.floor(Math.log10(size)), 0)});
    } else {
      text = value.toExponential(3).replace(/\.?0*e\+?/, "e");
    }
    return text.replace(/^-/, "\u2212");
  };

  const views = [...document.querySelectorAll(".view")].map((view) => {
    const run = Number(view.dataset.run), frame = document.createElement("div");
    const image = document.createElement("img"), caption = document.createElement("figcaption");
    frame.className = "frame";
    image.decoding = "sync";
    frame.append(image);
    view.append(frame, caption);
    const widest = Math.max(...data.grids[run].map((row) => row[3]));  // all are shown as large as that
    return {run, widest, frame, image, caption, rows: data.grids[run], name: data.alone ? "" : data.runs[run], at: -1};
  });

  const charts = data.charts.map((chart) => {
    const svg = id(chart.id);
    return {
      ...chart, svg, cursor: svg.querySelector(".cursor"), dots: [...svg.querySelectorAll(".at")],
      values: chart.series.map((_, i) => document.querySelector(`[data-value="${chart.id}-${i}"]`)),
    };
  });
  const place = (chart, value) => {
    if (!chart.log) return (value - chart.low) / (chart.high - chart.low);
    return value > 0 ? Math.log(value / chart.low) / Math.log(chart.high / chart.low) : -1;
  };

  const point = (kimg) => {
    const x = left + kimg / data.end * (width - left - right);
    for (const chart of charts) {
      chart.cursor.setAttribute("transform", `translate(${x} 0)`);
      chart.cursor.classList.add("on");
      chart.series.forEach((series, i) => {
        const at = nearest(series.x, kimg), value = series.y[at], share = value === null ? -1 : place(chart, value);
        chart.values[i].textContent = show(value);
        const inside = share >= 0 && share <= 1;
        chart.dots[i].setAttribute("cx", left + series.x[at] / data.end * (width - left - right));
        chart.dots[i].setAttribute("cy", inside ? top + (1 - share) * (height - top - bottom) : -99);
      });
    }
  };

  const step = () => {
    const [kimg, text] = data.steps[Number(slider.value)];
    now.value = `${text} kimg`;
    slider.setAttribute("aria-valuetext", now.value);
    for (const view of views) {
      const real = reals && reals.getAttribute("aria-pressed") === "true" && id(`other-${view.run}-0`);
      const at = real ? -2 : upTo(view.rows, kimg);
      if (at === view.at) continue;
      view.at = at;
      if (real) {
        for (const key of ["width", "height", "src", "alt"]) view.image[key] = real.getAttribute(key);
        view.caption.textContent = real.alt;
        continue;
      }
      const [, seen, source, w, h] = view.rows[at];
      view.image.width = view.widest;
      view.image.height = Math.round(view.widest * h / w);
      view.image.src = source.startsWith("still-") ? id(source).src : source;
      view.image.alt = `Samples ${view.name ? `of ${view.name} ` : ""}at ${seen} kimg`;
      view.caption.textContent = `${view.name ? `${view.name}, ` : ""}${seen} kimg`;
    }
    point(kimg);
  };
  const go = (at) => {
    slider.value = String(at);
    step();
  };

  if (slider) {
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
      play.setAttribute("aria-pressed", "false");
    };
    slider.addEventListener("input", () => {
      stop();
      step();
    });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) >= data.steps.length - 1) go(0);
      play.textContent = "Stop";
      play.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        if (Number(slider.value) >= data.steps.length - 1) stop(); else go(Number(slider.value) + 1);
      }, Math.min(Math.max(12000 / data.steps.length, 60), 400));
    });
    if (best) best.addEventListener("click", () => {
      stop();
      go(nearest(data.steps.map((row) => row[0]), Number(best.dataset.nimg) / 1000));
    });
    if (reals) reals.addEventListener("click", () => {
      reals.setAttribute("aria-pressed", String(reals.getAttribute("aria-pressed") !== "true"));
      step();
    });
    full.addEventListener("click", () => {
      const on = full.getAttribute("aria-pressed") !== "true";
      full.setAttribute("aria-pressed", String(on));
      for (const view of views) view.frame.classList.toggle("full", on);
    });
    document.querySelector(".bar").addEventListener("submit", (event) => event.preventDefault());
    step();
  }

  // A pointer over a curve shows the values there; a click or a touch takes the samples there, too.
  for (const chart of charts) {
    const under = (event) => {
      const box = chart.svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
      return Math.min(Math.max((x - left) / (width - left - right), 0), 1) * data.end;
    };
    chart.svg.addEventListener("pointermove", (event) => point(under(event)));
    chart.svg.addEventListener("pointerleave", () => {
      if (slider) point(data.steps[Number(slider.value)][0]);
    });
    chart.svg.addEventListener("click", (event) => {
      if (slider) go(nearest(data.steps.map((row) => row[0]), under(event)));
    });
  }
})();
