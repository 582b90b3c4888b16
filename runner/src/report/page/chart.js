// Curves: drawn to the pixel, with a cursor that follows the pointer, a finger or the arrow keys.

/** What lies in [from, to] of rising `list`: the first and the last index, one more at both ends. */
const between = (list, from, to) => [
  Math.max(0, rank(list, from) - 1),
  Math.min(list.length, rank(list, to) + 1),
];

/** Lowest and highest y of the points within [from, to]. */
const reach = (lines, from, to, isLog) => {
  let [low, high] = [Infinity, -Infinity];
  for (const {
    points: { x, y },
  } of lines) {
    for (let n = 0; n < y.length; n++) {
      if (x[n] < from || x[n] > to || !isNumber(y[n]) || (isLog && y[n] <= 0)) continue;
      if (y[n] < low) low = y[n];
      if (y[n] > high) high = y[n];
    }
  }
  return [low, high];
};

/** A path through points; it breaks where there is no number. */
const path = ({ x, y }, xs, ys, [from, to]) => {
  let [text, isOpen] = ['', false];
  for (let n = from; n < to; n++) {
    const isDrawn = isNumber(y[n]) && (!ys.isLog || y[n] > 0);
    if (isDrawn) text += `${isOpen ? 'L' : 'M'}${xs.at(x[n]).toFixed(1)} ${ys.at(y[n]).toFixed(1)}`;
    isOpen = isDrawn;
  }
  return text;
};

/** Keeps what a chart is drawn into as wide as its place. */
const onResize = (element, draw) => {
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs(element.clientWidth - width) < 1) return;
    width = element.clientWidth;
    draw();
  }).observe(element);
};

const TICK_WIDTH = 6.4;
const BOTTOM = 24;
const TOP = 8;

/** Axes with ticks, and the place between them. Returns the place and both scales. */
const frame = (plot, { width, height, xs, ys, yText, axis }) => {
  const isWide = width > 500;
  const yTicks = (ys.isLog ? logTicks : ticks)(ys.low, ys.high, height > 240 ? 6 : 5);
  const left = Math.max(
    axis.name.length * TICK_WIDTH + 14,
    Math.ceil(Math.max(...yTicks.map(tick => yText(tick).length)) * TICK_WIDTH) + 10,
  );
  const right = 14;
  const x = scale(xs[0], xs[1], left, width - right, false);
  const y = scale(ys.low, ys.high, height - BOTTOM, TOP, ys.isLog);
  const grid = svg('g', { class: 'grid' });
  const text = svg('g', { class: 'ticks' });
  for (const tick of yTicks) {
    const at = y.at(tick);
    if (at < TOP - 1 || at > height - BOTTOM + 1) continue;
    grid.append(svg('line', { x1: left, x2: width - right, y1: at, y2: at }));
    text.append(svg('text', { x: left - 8, y: at, 'text-anchor': 'end', dy: '0.32em' }, yText(tick)));
  }
  const xTicks = axis.ticks(xs[0], xs[1], Math.max(2, Math.floor((width - left) / (isWide ? 100 : 64))));
  // What the axis is of stands left of its ticks.
  text.append(svg('text', { x: 0, y: height - BOTTOM + 16 }, axis.name));
  let end = axis.name.length * TICK_WIDTH;
  for (const tick of xTicks) {
    const at = x.at(tick);
    const label = axis.text(tick);
    const half = (label.length * TICK_WIDTH) / 2;
    const middle = Math.min(at, width - half - 1);
    if (at < left - 1 || middle - half < end + 4) continue;
    end = middle + half;
    grid.append(svg('line', { x1: at, x2: at, y1: TOP, y2: height - BOTTOM }));
    text.append(svg('text', { x: middle, y: height - BOTTOM + 16, 'text-anchor': 'middle' }, label));
  }
  grid.append(
    svg('line', { class: 'base', x1: left, x2: width - right, y1: height - BOTTOM, y2: height - BOTTOM }),
  );
  plot.append(grid, text);
  return { left, right: width - right, x, y };
};

/** Room above and below the values. */
const padded = (low, high, isLog, fromZero) => {
  if (!isNumber(low)) return [0, 1];
  if (isLog) {
    const room = Math.max((high / low) ** 0.05, 1.02);
    return [low / room, high * room];
  }
  if (fromZero && low >= 0) low = 0;
  if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  const room = (high - low) * 0.05;
  return [low === 0 && fromZero ? 0 : low - room, high + room];
};

let clips = 0;

/**
 * A chart of curves. `spec` has title, key (of the figure in metrics.jsonl), note, text (of a value),
 * height, fromZero, canLog, and lines(view): what to draw, each { run, name, points, and looks: width,
 * faint, dots }; those without `name` have no values to tell. `view` is what the controls say.
 */
const lineChart = (spec, view) => {
  const { title, key, note, text = short, height = 190 } = spec;
  let isLog = false;
  let lines = [];
  let place = null;
  let cursor = null;
  const clip = `clip-${++clips}`;

  const log =
    spec.canLog &&
    html(
      'button',
      {
        type: 'button',
        class: 'small toggle',
        'aria-pressed': 'false',
        title: 'Logarithmic y axis',
        onclick: () => {
          isLog = !isLog;
          log.setAttribute('aria-pressed', isLog);
          draw();
        },
      },
      'log',
    );
  const plot = svg('svg', { class: 'plot', tabindex: 0, role: 'img', height });
  const marks = svg('g', { class: 'marks' });
  const tip = html('div', { class: 'tip', role: 'status', hidden: true });
  const box = html('div', { class: 'box' }, plot, tip);
  const none = html('p', { class: 'none', hidden: true }, 'The runs shown have no such figure.');
  const looks = html('span', { class: 'looks' });
  const values = html('div', { class: 'values', tabindex: 0 });
  const details = html(
    'details',
    { ontoggle: () => details.open && fill() },
    html('summary', {}, 'Values'),
    values,
  );
  const root = html(
    'figure',
    { class: 'chart', 'data-figure': spec.id },
    html('figcaption', {}, html('h3', {}, title), key && html('code', { class: 'key' }, key), looks, log),
    box,
    none,
    note && html('p', { class: 'note' }, note),
    details,
  );

  const named = () => lines.filter(line => line.name);

  const draw = () => {
    lines = spec.lines(view).filter(line => line.points.x.length);
    const isEmpty = !lines.some(line => line.points.y.some(isNumber));
    none.hidden = !isEmpty;
    box.hidden = details.hidden = isEmpty;
    looks.replaceChildren(...(spec.looks ? spec.looks(lines) : []));
    if (isEmpty) return;
    const width = box.clientWidth;
    if (!width) return;
    const axis = AXES[view.axis];
    const all = lines.flatMap(({ points: { x } }) => [x[0], x[x.length - 1]]);
    const xs = view.zoom || [0, Math.max(...all)];
    if (xs[0] === xs[1]) xs[1] += 1;
    const useLog = isLog && reach(lines, xs[0], xs[1], true)[0] > 0;
    const [low, high] = padded(...reach(lines, xs[0], xs[1], useLog), useLog, spec.fromZero);
    plot.setAttribute('width', width);
    plot.setAttribute('aria-label', `${title} over ${axis.name}. Arrow keys move the cursor.`);
    plot.replaceChildren();
    place = frame(plot, { width, height, xs, ys: { low, high, isLog: useLog }, yText: text, axis });
    const { left, right, x, y } = place;
    plot.append(
      svg(
        'clipPath',
        { id: clip },
        svg('rect', { x: left - 3, y: 0, width: right - left + 6, height: height - BOTTOM + 3 }),
      ),
    );
    const curves = svg('g', { 'clip-path': `url(#${clip})` });
    for (const line of lines) {
      const range = between(line.points.x, xs[0], xs[1]);
      const style = { '--line': line.colour || line.run.colour };
      const d = path(line.points, x, y, range);
      curves.append(
        svg('path', {
          class: `line${line.faint ? ' faint' : ''}`,
          d,
          style,
          'stroke-width': line.width || 1.6,
          'stroke-dasharray': line.dash || line.run.dash,
          'data-run': line.run.name,
          'data-points': range[1] - range[0],
        }),
      );
      const count = range[1] - range[0];
      if (line.dots || count === 1) {
        const every = Math.ceil(count / (width / 9));
        for (let n = range[0]; n < range[1]; n += every) {
          if (isNumber(line.points.y[n]) && !(useLog && line.points.y[n] <= 0)) {
            curves.append(
              svg('circle', {
                class: 'dot',
                cx: x.at(line.points.x[n]),
                cy: y.at(line.points.y[n]),
                r: 3,
                style,
              }),
            );
          }
        }
      }
    }
    plot.append(curves, marks);
    if (details.open) fill();
    point(cursor);
  };

  /** Shows what is at x, or nothing; without `tell` the cursor alone. */
  const point = (x, tell = cursor !== null) => {
    marks.replaceChildren();
    tip.hidden = true;
    if (x === null || !place || x < place.x.low || x > place.x.high) return;
    const at = place.x.at(x);
    marks.append(svg('line', { class: 'cursor', x1: at, x2: at, y1: TOP, y2: height - BOTTOM }));
    if (!tell) return;
    const rows = [];
    for (const line of named()) {
      const n = nearest(line.points.x, x);
      const value = line.points.y[n];
      const [px, py] = [place.x.at(line.points.x[n]), isNumber(value) ? place.y.at(value) : NaN];
      const style = { '--line': line.colour || line.run.colour };
      if (isNumber(py) && px >= place.left - 1 && px <= place.right + 1) {
        marks.append(svg('circle', { class: 'here', cx: px, cy: py, r: 4, style }));
      }
      rows.push(
        html(
          'tr',
          {},
          html(
            'th',
            { scope: 'row' },
            html('i', { class: 'swatch', style }),
            view.many ? `${line.run.name} ${line.name}` : line.name,
          ),
          html('td', {}, (spec.exact || (v => short(v, 5)))(value)),
          html('td', { class: 'dim' }, `@ ${whole(line.points.step[n])}`),
        ),
      );
    }
    const axis = AXES[view.axis];
    tip.replaceChildren(
      html(
        'table',
        {},
        html('caption', {}, `${axis.title} ${axis.exact(view.axis === 'time' ? x : Math.round(x))}`),
        html('tbody', {}, rows),
      ),
    );
    tip.hidden = false;
    const [room, size] = [box.clientWidth, tip.offsetWidth];
    const beside = at + 14 + size > room ? at - 14 - size : at + 14;
    // Where there is room on neither side, away from the finger.
    tip.style.left = `${beside >= 0 ? beside : at < room / 2 ? Math.max(0, room - size) : 0}px`;
    tip.style.top = `${TOP}px`;
  };

  const set = x => {
    cursor = x;
    point(x);
    view.onCursor(chart, x);
  };
  const toValue = event => {
    const pixel = event.clientX - plot.getBoundingClientRect().left;
    return place && place.x.back(Math.max(place.left, Math.min(place.right, pixel)));
  };
  let drag = null;
  plot.addEventListener('pointerdown', event => {
    if (!place || event.button) return;
    if (event.pointerType === 'mouse') {
      plot.setPointerCapture(event.pointerId);
      drag = toValue(event);
    } else {
      set(toValue(event));
    }
  });
  plot.addEventListener('pointermove', event => {
    if (!place) return;
    const x = toValue(event);
    set(x);
    if (drag === null) return;
    const [a, b] = [place.x.at(drag), place.x.at(x)];
    marks.append(
      svg('rect', {
        class: 'range',
        x: Math.min(a, b),
        width: Math.abs(b - a),
        y: TOP,
        height: height - BOTTOM - TOP,
      }),
    );
  });
  plot.addEventListener('pointerup', event => {
    const [from, to] = [drag, toValue(event)];
    drag = null;
    if (from !== null && Math.abs(place.x.at(from) - place.x.at(to)) > 8) {
      view.onZoom([Math.min(from, to), Math.max(from, to)]);
    }
  });
  plot.addEventListener('pointercancel', () => {
    drag = null;
  });
  plot.addEventListener('pointerleave', event => {
    if (event.pointerType === 'mouse' && document.activeElement !== plot) set(null);
  });
  plot.addEventListener('dblclick', () => view.onZoom(null));
  plot.addEventListener('blur', () => set(null));
  plot.addEventListener('keydown', event => {
    if (!place || !named().length) return;
    const { x } = named().reduce((a, b) => (b.points.x.length > a.points.x.length ? b : a)).points;
    const [from, to] = [rank(x, place.x.low - 1e-9), rank(x, place.x.high) - 1];
    const now = cursor === null ? -1 : nearest(x, cursor);
    const far = Math.max(1, Math.round((to - from) / 20));
    const move = { ArrowRight: 1, ArrowLeft: -1, PageUp: far, PageDown: -far }[event.key];
    const middle = cursor === null ? (place.x.low + place.x.high) / 2 : cursor;
    const zoom = { '+': 0.25, '=': 0.25, '-': 1 }[event.key];
    if (move) set(x[Math.max(from, Math.min(to, now < 0 ? (move > 0 ? from : to) : now + move))]);
    else if (event.key === 'Home') set(x[from]);
    else if (event.key === 'End') set(x[to]);
    else if (zoom) {
      const half = (place.x.high - place.x.low) * zoom;
      view.onZoom(zoom < 1 ? [middle - half, middle + half] : null);
    } else if (event.key === 'Escape') {
      set(null);
      view.onZoom(null);
    } else return;
    event.preventDefault();
  });

  /** The table of what is drawn, built when it is asked for. */
  const fill = () => {
    const shownLines = named();
    const steps = [...new Set(shownLines.flatMap(line => line.points.step))].sort((a, b) => a - b);
    const maps = shownLines.map(line => new Map(line.points.step.map((step, n) => [step, line.points.y[n]])));
    const top = values.scrollTop;
    values.replaceChildren(
      html(
        'table',
        {},
        html(
          'thead',
          {},
          html(
            'tr',
            {},
            html('th', { scope: 'col' }, 'Step'),
            shownLines.map(line =>
              html('th', { scope: 'col' }, view.many ? `${line.run.name} ${line.name}` : line.name),
            ),
          ),
        ),
        html(
          'tbody',
          {},
          steps.map(step =>
            html(
              'tr',
              {},
              html('th', { scope: 'row' }, whole(step)),
              maps.map(map =>
                html(
                  'td',
                  {},
                  map.has(step) ? (isNumber(map.get(step)) ? digits(map.get(step), 7) : 'not a number') : '',
                ),
              ),
            ),
          ),
        ),
      ),
    );
    values.scrollTop = top;
  };

  const chart = {
    root,
    draw,
    cross: x => {
      if (cursor === null) point(x, false);
    },
  };
  onResize(box, draw);
  return chart;
};
