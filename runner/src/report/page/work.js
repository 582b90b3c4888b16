// Where time goes: operations, workers, and both over time.

const PART_COLOURS = {
  busy: 'var(--run-0)',
  queue: 'var(--run-4)',
  steal: 'var(--run-3)',
  wait: 'var(--run-1)',
  data: 'var(--run-2)',
  rest: 'var(--rest)',
};
const PART_NAMES = {
  busy: 'busy',
  queue: 'queue',
  steal: 'steal',
  wait: 'no tile ready',
  data: 'waiting for data',
  rest: 'between runs',
};
const SHOWN_OPERATIONS = 12;
const AREAS = 7;

const key = (colour, name) =>
  html('span', { class: 'look' }, html('i', { class: 'swatch', style: { '--line': colour } }), name);

/** Bars of each operation, of all runs shown, the longest of all first. */
const operationBars = () => {
  let isAll = false;
  let shownRuns = [];
  const body = html('div', {});
  const more = html('button', {
    type: 'button',
    class: 'small',
    onclick: () => {
      isAll = !isAll;
      update(shownRuns);
    },
  });
  const root = html(
    'figure',
    { class: 'chart', 'data-figure': 'operations' },
    html(
      'figcaption',
      {},
      html('h3', {}, 'Time by operation'),
      html('code', { class: 'key' }, 'operations'),
      html('span', { class: 'looks' }, 'share of what the workers were busy with'),
    ),
    body,
    more,
  );
  const update = runs => {
    shownRuns = runs;
    const told = runs.filter(run => run.work && run.work.operations.length);
    more.hidden = true;
    if (!told.length) {
      body.replaceChildren(html('p', { class: 'none' }, 'The runs shown have told nothing of operations.'));
      return;
    }
    const shares = new Map(
      told.map(run => {
        const all = sum(run.work.operations.map(([, seconds]) => seconds)) || 1;
        return [
          run,
          new Map(run.work.operations.map(([name, seconds]) => [name, { seconds, share: seconds / all }])),
        ];
      }),
    );
    const zero = { seconds: 0, share: 0 };
    const names = [...new Set(told.flatMap(run => run.work.operations.map(([name]) => name)))];
    const most = name => Math.max(...told.map(run => (shares.get(run).get(name) || { share: 0 }).share));
    names.sort((a, b) => most(b) - most(a));
    const rows = names.slice(0, isAll ? names.length : SHOWN_OPERATIONS);
    const rest = names.slice(rows.length);
    const restOf = run =>
      rest.reduce((all, name) => {
        const { seconds, share } = shares.get(run).get(name) || zero;
        return { seconds: all.seconds + seconds, share: all.share + share };
      }, zero);
    const top = Math.max(most(names[0]), ...told.map(run => restOf(run).share)) || 1;
    const bar = (run, { seconds, share }, isRest) =>
      html(
        'div',
        { class: 'bar' },
        html(
          'span',
          { class: 'track' },
          html('span', {
            class: isRest ? 'fill rest' : 'fill',
            style: { width: `${100 * Math.min(1, share / top)}%`, '--line': run.colour },
          }),
        ),
        html('span', { class: 'value', title: `${digits(seconds, 5)} s of all workers` }, percent(share)),
      );
    const row = (name, of, isRest = false) =>
      html(
        'tr',
        {},
        html('th', { scope: 'row' }, name),
        html(
          'td',
          {},
          told.map(run => bar(run, of(run), isRest)),
        ),
      );
    body.replaceChildren(
      html(
        'table',
        { class: 'bars' },
        html(
          'tbody',
          {},
          rows.map(name => row(name, run => shares.get(run).get(name) || zero)),
          rest.length > 0 && row(`${rest.length} others`, restOf, true),
        ),
      ),
    );
    more.hidden = names.length <= SHOWN_OPERATIONS;
    more.textContent = isAll ? 'Show the longest' : `Show all ${names.length}`;
  };
  return { root, update };
};

/** A stacked bar of each worker of one run. */
const workerBars = () => {
  const body = html('div', {});
  const root = html(
    'figure',
    { class: 'chart', 'data-figure': 'workers' },
    html(
      'figcaption',
      {},
      html('h3', {}, 'What each worker did'),
      html('code', { class: 'key' }, 'workers'),
      html(
        'span',
        { class: 'looks' },
        Object.entries(PART_NAMES).map(([part, name]) => key(PART_COLOURS[part], name)),
      ),
    ),
    body,
  );
  const update = run => {
    if (!run || !run.work) {
      body.replaceChildren(html('p', { class: 'none' }, 'The run has told nothing of its workers.'));
      return;
    }
    const { seconds, workers, parts } = run.work;
    body.replaceChildren(
      html(
        'div',
        { class: 'scroll' },
        html(
          'table',
          { class: 'bars' },
          html(
            'tbody',
            {},
            workers.map(([name, times]) => {
              const told = parts
                .map((part, n) => `${PART_NAMES[part]} ${percent(times[n] / seconds, 2)}`)
                .join(', ');
              return html(
                'tr',
                {},
                html('th', { scope: 'row' }, name.replace(/^cllm-/, '')),
                html(
                  'td',
                  {},
                  html(
                    'div',
                    { class: 'bar' },
                    html(
                      'span',
                      { class: 'track stack', title: told, role: 'img', 'aria-label': told },
                      parts.map((part, n) =>
                        html('span', {
                          class: 'fill',
                          style: {
                            width: `${Math.min(100, (100 * times[n]) / seconds)}%`,
                            '--line': PART_COLOURS[part],
                          },
                        }),
                      ),
                    ),
                    html('span', { class: 'value' }, percent(times[0] / seconds)),
                  ),
                ),
              );
            }),
          ),
        ),
      ),
      html(
        'p',
        { class: 'note' },
        `Of ${duration(seconds)} of steps; validations and checkpoints are left out. Queue: saying that a tile is done, \
and finding the next; steal: taking one of another worker’s.`,
      ),
    );
  };
  return { root, update };
};

/** Cells: each worker's share of busy time over the run. */
const workerCells = view => {
  let run = null;
  const plot = svg('svg', { class: 'plot', role: 'img', 'aria-label': 'How busy each worker was over time' });
  const box = html('div', { class: 'box' }, plot);
  const said = html('p', { class: 'note', role: 'status' });
  const hint = 'The stronger the colour, the busier. Point at a cell for its value.';
  const none = html('p', { class: 'none' }, 'The run has told nothing of its workers over time.');
  const root = html(
    'figure',
    { class: 'chart', 'data-figure': 'utilisation-cells' },
    html(
      'figcaption',
      {},
      html('h3', {}, 'Utilisation of each worker over time'),
      html('code', { class: 'key' }, 'work.workers'),
    ),
    box,
    said,
    none,
  );
  const draw = () => {
    const stretches = run && run.work ? run.work.stretches : [];
    const axis = AXES[view.axis];
    const cells = stretches
      .map(s => ({ from: axis.of(run, s.from), to: axis.of(run, s.to), busy: s.busy, step: s.to }))
      .filter(cell => isNumber(cell.from) && isNumber(cell.to));
    none.hidden = cells.length > 0;
    box.hidden = said.hidden = !cells.length;
    said.textContent = hint;
    const width = box.clientWidth;
    if (!cells.length || !width) return;
    const names = run.work.workers.map(([name]) => name.replace(/^(cllm-)?worker[- ]/, ''));
    const count = names.length;
    const size = Math.max(4, Math.min(28, Math.floor(320 / count)));
    const height = TOP + count * size + BOTTOM;
    plot.setAttribute('width', width);
    plot.setAttribute('height', height);
    plot.replaceChildren();
    const xs = [cells[0].from, cells[cells.length - 1].to];
    const { x } = frame(plot, {
      width,
      height,
      xs,
      ys: { low: -0.5, high: count - 0.5 },
      axis,
      yText: n =>
        Number.isInteger(n) && names[count - 1 - n] !== undefined ? `worker ${names[count - 1 - n]}` : '',
    });
    const marks = svg('g', { class: 'cells' });
    for (const cell of cells) {
      const [from, to] = [x.at(cell.from), x.at(cell.to)];
      cell.busy.forEach((busy, worker) =>
        marks.append(
          svg('rect', {
            x: from,
            width: Math.max(0.5, to - from + 0.3),
            y: TOP + worker * size,
            height: size - (size > 6 ? 1.5 : 0.3),
            style: { '--line': run.colour, '--share': Math.max(0, Math.min(1, busy)) },
            'data-told': `worker ${names[worker]}, up to step ${whole(cell.step)}: busy ${percent(busy)}`,
          }),
        ),
      );
    }
    plot.append(marks);
  };
  plot.addEventListener('pointermove', event => {
    said.textContent = event.target.dataset.told || hint;
  });
  plot.addEventListener('pointerleave', () => {
    said.textContent = hint;
  });
  onResize(box, draw);
  return {
    root,
    update: chosen => {
      run = chosen;
      draw();
    },
  };
};

/** Areas on one another: shares of all workers' time over the run. */
const areas = (view, { id, title, keyName, layers }) => {
  let run = null;
  const plot = svg('svg', { class: 'plot', role: 'img', 'aria-label': title });
  const box = html('div', { class: 'box' }, plot);
  const looks = html('span', { class: 'looks' });
  const said = html('p', { class: 'note', role: 'status' });
  const none = html('p', { class: 'none' }, 'The run has told nothing of it over time.');
  const root = html(
    'figure',
    { class: 'chart', 'data-figure': id },
    html('figcaption', {}, html('h3', {}, title), html('code', { class: 'key' }, keyName), looks),
    box,
    said,
    none,
  );
  const height = 220;
  let cells = [];
  let place = null;
  const draw = () => {
    const axis = AXES[view.axis];
    const named = run && run.work ? layers(run) : [];
    cells = !named.length
      ? []
      : run.work.stretches
          .map((s, n) => ({
            from: axis.of(run, s.from),
            to: axis.of(run, s.to),
            step: s.to,
            shares: named.map(layer => layer.shares[n]),
          }))
          .filter(cell => isNumber(cell.from) && isNumber(cell.to));
    none.hidden = cells.length > 0;
    box.hidden = said.hidden = !cells.length;
    looks.replaceChildren(...(cells.length ? named.map(layer => key(layer.colour, layer.name)) : []));
    said.textContent = 'Share of all workers’ time in steps.';
    const width = box.clientWidth;
    if (!cells.length || !width) return;
    plot.setAttribute('width', width);
    plot.setAttribute('height', height);
    plot.replaceChildren();
    const xs = [cells[0].from, cells[cells.length - 1].to];
    place = frame(plot, {
      width,
      height,
      xs,
      ys: { low: 0, high: 1 },
      axis,
      yText: share => percent(share, 0),
    });
    const { x, y } = place;
    const base = cells.map(() => 0);
    named.forEach((layer, at) => {
      const below = base.slice();
      cells.forEach((cell, n) => {
        base[n] = Math.min(1, base[n] + cell.shares[at]);
      });
      const edge = list =>
        cells.flatMap((cell, n) => [
          `${x.at(cell.from).toFixed(1)} ${y.at(list[n]).toFixed(1)}`,
          `${x.at(cell.to).toFixed(1)} ${y.at(list[n]).toFixed(1)}`,
        ]);
      plot.append(
        svg('path', {
          class: 'area',
          'data-points': cells.length,
          style: { '--line': layer.colour },
          d: `M${edge(base).join('L')}L${edge(below).reverse().join('L')}Z`,
        }),
      );
    });
    plot.append(svg('g', { class: 'marks' }));
    plot.dataset.names = JSON.stringify(named.map(layer => layer.name));
  };
  plot.addEventListener('pointermove', event => {
    if (!place) return;
    const value = place.x.back(event.clientX - plot.getBoundingClientRect().left);
    const cell = cells.find(c => value >= c.from && value <= c.to);
    if (!cell) return;
    const names = JSON.parse(plot.dataset.names);
    said.textContent =
      `Up to step ${whole(cell.step)}: ` +
      names.map((name, n) => `${name} ${percent(cell.shares[n])}`).join(', ');
  });
  onResize(box, draw);
  return {
    root,
    update: chosen => {
      run = chosen;
      draw();
    },
  };
};

/** The layers of the two charts of areas. */
const partLayers = run =>
  run.work.parts.map((part, at) => ({
    name: PART_NAMES[part],
    colour: PART_COLOURS[part],
    shares: run.work.stretches.map(s => s.parts[at]),
  }));
const operationLayers = run => {
  const shares = at => run.work.stretches.map(s => s.operations[at] || 0);
  const layers = run.work.operations.slice(0, AREAS).map(([name], at) => ({
    name,
    colour: `var(--run-${at})`,
    shares: shares(at),
  }));
  const rest = run.work.operations.slice(AREAS).map((_, at) => shares(AREAS + at));
  if (rest.length) {
    layers.push({
      name: `${rest.length} others`,
      colour: 'var(--rest)',
      shares: run.work.stretches.map((_, n) => sum(rest.map(list => list[n]))),
    });
  }
  return layers;
};
