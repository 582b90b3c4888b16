// The page: what is shown, the controls, and asking for news while a run is live.

const view = {
  axis: 'step',
  smoothing: 0.3,
  zoom: null,
  hidden: new Set(),
  many: false,
  onCursor: (from, x) => charts().forEach(chart => chart !== from && chart.cross(x)),
  onZoom: range => {
    view.zoom = range;
    resetZoom.hidden = !range;
    redraw();
  },
};
let runs = [];
let fingerprint = '';
const visible = () => runs.filter(run => !view.hidden.has(run.name));
const axis = () => AXES[view.axis];

// Curves.
const curveLines = (event, name, looks) => () =>
  visible().flatMap(run => {
    const curve = run.curve(event, name);
    const all = { run, ...looks, points: pointsOf(run, curve, axis()) };
    if (!curve || !curve.mean) return [all];
    // Of what was thinned: the extremes, and over them the means.
    const mean = pointsOf(run, { ...curve, ...curve.mean }, axis());
    return [
      { ...all, faint: true, width: 1 },
      { run, name: 'mean', points: mean, width: 1.6 },
    ];
  });
const lossLines = () =>
  visible().flatMap(run => {
    const curve = run.curve('step', 'loss');
    const isSmooth = view.smoothing > 0;
    return [
      {
        run,
        name: 'training',
        points: pointsOf(run, curve, axis()),
        faint: isSmooth,
        width: isSmooth ? 1 : 1.4,
      },
      ...(isSmooth
        ? [{ run, name: 'smoothed', points: smoothed(run, curve, axis(), view.smoothing), width: 1.8 }]
        : []),
      {
        run,
        name: 'validation',
        points: pointsOf(run, run.curve('eval', 'val_loss'), axis()),
        dots: true,
        width: 1.5,
        dash: '5 3',
      },
    ];
  });
const look = (name, colour, kind) =>
  html('span', { class: 'look' }, html('i', { class: `stroke ${kind}`, style: { '--line': colour } }), name);
const lossLooks = lines => {
  const colour = visible().length === 1 ? visible()[0].colour : 'var(--dim)';
  const has = name => lines.some(line => line.name === name);
  return [
    has('training') && look('training', colour, view.smoothing > 0 ? 'faint' : ''),
    has('smoothed') && look('smoothed', colour, 'bold'),
    has('validation') && look('validation', colour, 'dots'),
  ].filter(Boolean);
};
const busyLines = () =>
  visible()
    .filter(run => run.work && run.work.stretches.length)
    .map(run => {
      const points = { x: [], y: [], step: [] };
      for (const stretch of run.work.stretches) {
        const x = axis().of(run, stretch.to);
        if (!isNumber(x)) continue;
        points.x.push(x);
        points.y.push(stretch.parts[0]);
        points.step.push(stretch.to);
      }
      return { run, name: 'busy', points };
    });

const lossChart = lineChart(
  {
    id: 'loss',
    title: 'Loss',
    key: 'step.loss, eval.val_loss',
    height: 340,
    canLog: true,
    lines: lossLines,
    looks: lossLooks,
    exact: value => (isNumber(value) ? value.toFixed(4) : 'not a number'),
  },
  view,
);
const share = value => `${digits(100 * value, 3)} %`;
const smallCharts = [
  lineChart(
    {
      id: 'lr',
      title: 'Learning rate',
      key: 'step.lr',
      fromZero: true,
      canLog: true,
      lines: curveLines('step', 'lr', { name: 'rate' }),
    },
    view,
  ),
  lineChart(
    {
      id: 'grad_norm',
      title: 'Gradient norm',
      key: 'step.grad_norm',
      fromZero: true,
      canLog: true,
      lines: curveLines('step', 'grad_norm', { name: 'norm', width: 1.2 }),
    },
    view,
  ),
  lineChart(
    {
      id: 'tokens_per_s',
      title: 'Throughput, tokens/s',
      key: 'step.tokens_per_s',
      fromZero: true,
      lines: curveLines('step', 'tokens_per_s', { name: 'tokens/s', width: 1.2 }),
    },
    view,
  ),
  lineChart(
    {
      id: 'mfu',
      title: 'Share of peak',
      key: 'step.mfu',
      fromZero: true,
      text: share,
      exact: value => percent(value, 2),
      lines: curveLines('step', 'mfu', { name: 'share', width: 1.2 }),
    },
    view,
  ),
  lineChart(
    {
      id: 'utilisation',
      title: 'Workers busy',
      key: 'work.workers.busy',
      fromZero: true,
      text: share,
      exact: value => percent(value, 2),
      lines: busyLines,
    },
    view,
  ),
  lineChart(
    {
      id: 'data_wait',
      title: 'Waiting for data, s',
      key: 'step.data_wait',
      fromZero: true,
      canLog: true,
      lines: curveLines('step', 'data_wait', { name: 'seconds', width: 1.2 }),
    },
    view,
  ),
];
const KNOWN = new Set([
  'step.loss',
  'eval.val_loss',
  'step.lr',
  'step.grad_norm',
  'step.tokens_per_s',
  'step.mfu',
  'step.data_wait',
  // The axis of time.
  'step.seconds',
  'eval.seconds',
]);
/** Charts of figures that this page does not know, by name. */
const otherCharts = new Map();

// Work.
const operations = operationBars();
const perRun = [
  workerBars(),
  workerCells(view),
  areas(view, {
    id: 'parts',
    title: 'What workers did over time',
    keyName: 'work.workers',
    layers: partLayers,
  }),
  areas(view, {
    id: 'operations-over-time',
    title: 'Operations over time',
    keyName: 'work.operations',
    layers: operationLayers,
  }),
];
let chosenName = null;
const chosen = () => visible().find(run => run.name === chosenName) || visible()[0];
const choice = html('select', {
  onchange: () => {
    chosenName = choice.value;
    redraw();
  },
});
const choiceLabel = html('label', { class: 'control' }, 'Run', choice);

const charts = () => [lossChart, ...smallCharts, ...otherCharts.values()];

// Controls.
const radio = (name, label) =>
  html(
    'label',
    {},
    html('input', {
      type: 'radio',
      name: 'axis',
      value: name,
      checked: view.axis === name,
      onchange: () => {
        view.axis = name;
        view.onZoom(null);
      },
    }),
    html('span', {}, label),
  );
const smoothing = html('input', {
  type: 'range',
  id: 'smoothing',
  min: 0,
  max: 1,
  step: 0.02,
  value: view.smoothing,
  oninput: () => {
    view.smoothing = Number(smoothing.value);
    smoothingText();
    lossChart.draw();
  },
});
const smoothingSaid = html('output', { for: 'smoothing' });
const smoothingText = () => {
  smoothingSaid.textContent = view.smoothing ? `${Math.round(100 * view.smoothing)}` : 'off';
};
smoothingText();
const resetZoom = html(
  'button',
  { type: 'button', class: 'small', hidden: true, onclick: () => view.onZoom(null) },
  'Reset zoom',
);
const legend = html('div', { class: 'legend', role: 'group', 'aria-label': 'Runs shown' });
const live = html('span', { class: 'live', role: 'status', hidden: true });

const toolbar = html(
  'nav',
  { class: 'toolbar', 'aria-label': 'Controls' },
  legend,
  html(
    'fieldset',
    { class: 'segments' },
    html('legend', {}, 'Axis'),
    radio('step', 'Steps'),
    radio('tokens', 'Tokens'),
    radio('time', 'Time'),
  ),
  html('label', { class: 'control' }, 'Smoothing', smoothing, smoothingSaid),
  resetZoom,
  live,
);

const title = html('h1', {});
const subtitle = html('p', { class: 'dim' });
const cards = html('div', { class: 'cards' });
const others = html('div', { class: 'grid' });
const samples = html('div', { class: 'cards' });
const sampleCards = new Map();
const noSamples = html('p', { class: 'none' }, 'The runs shown have written no samples.');
const differencesBox = html('div', {});
const settingsBox = html('div', {});
const environmentBox = html('div', {});
const moreBox = html('div', {});
const endBox = html('div', {});
const historyBox = html('div', {});
const figuresBox = html('div', {});
const thinned = html('p', { class: 'note' });
const section = (id, name, ...content) => html('section', { id }, html('h2', {}, name), ...content);
const differencesSection = section('differences', 'Differences', differencesBox);
const folded = (name, ...content) =>
  html('details', { class: 'folded' }, html('summary', {}, name), ...content);

document.getElementById('page').append(
  html('header', { class: 'top' }, title, subtitle),
  cards,
  toolbar,
  section(
    'curves',
    'Training',
    lossChart.root,
    html(
      'div',
      { class: 'grid' },
      smallCharts.map(chart => chart.root),
    ),
    others,
    thinned,
  ),
  section(
    'work',
    'Where the time goes',
    operations.root,
    choiceLabel,
    html(
      'div',
      { class: 'grid two' },
      perRun.map(part => part.root),
    ),
  ),
  section('samples', 'Samples', samples, noSamples),
  differencesSection,
  section(
    'settings',
    'Settings and environment',
    html('h3', {}, 'Environment'),
    environmentBox,
    folded('Settings', settingsBox),
    folded('Model, memory, data', moreBox),
    folded('The end of the run', endBox),
    folded('Sessions and events', historyBox),
    folded('All figures', figuresBox),
  ),
  html(
    'footer',
    { class: 'dim' },
    'Made by cllm ',
    html('span', { id: 'version' }),
    '. Drag over a chart to zoom, double-click to see all; with the keyboard: arrows, + and −.',
  ),
);

/** Everything that depends on the data. */
const update = all => {
  const text = JSON.stringify(all);
  if (text === fingerprint) return;
  fingerprint = text;
  runs = all.runs.map(understand);
  view.many = runs.length > 1;
  document.getElementById('version').textContent = all.cllm;
  title.textContent = runs.length === 1 ? runs[0].name : `${runs.length} runs`;
  subtitle.textContent = runs.map(run => run.folder).join(' · ');
  // Buttons stay where they are: one of them may have the focus.
  if (
    legend.childElementCount !== runs.length ||
    runs.some((run, n) => legend.children[n].dataset.run !== run.name)
  ) {
    legend.replaceChildren(
      ...runs.map(run =>
        html(
          'button',
          {
            type: 'button',
            class: 'chip',
            'data-run': run.name,
            'aria-pressed': String(!view.hidden.has(run.name)),
            onclick: event => {
              if (!view.hidden.delete(run.name)) view.hidden.add(run.name);
              event.currentTarget.setAttribute('aria-pressed', String(!view.hidden.has(run.name)));
              redraw();
            },
          },
          swatch(run),
          run.name,
        ),
      ),
    );
  }
  for (const run of runs) {
    for (const { event, key: name } of run.curves) {
      const full = `${event}.${name}`;
      if (KNOWN.has(full) || otherCharts.has(full)) continue;
      const chart = lineChart(
        { id: full, title: name, key: full, lines: curveLines(event, name, { name }) },
        view,
      );
      otherCharts.set(full, chart);
      others.append(chart.root);
    }
  }
  settingsBox.replaceChildren(compared(runs, runs.map(settingsOf)) || 'None known.');
  environmentBox.replaceChildren(compared(runs, runs.map(environmentOf)) || 'The run has not told.');
  moreBox.replaceChildren(
    compared(
      runs,
      runs.map(run => flat(startOf(run))),
    ) || 'None known.',
  );
  endBox.replaceChildren(
    compared(
      runs,
      runs.map(run => flat(without(run.end, 'event'))),
    ) || 'No run shown has ended.',
  );
  differencesSection.hidden = !view.many;
  if (view.many) differencesBox.replaceChildren(differences(runs) || 'The runs were told the same.');
  const most = Math.max(
    0,
    ...runs.flatMap(run => run.curves.filter(curve => curve.mean).map(curve => curve.of)),
  );
  thinned.hidden = !most;
  thinned.textContent = `Curves of more than 2,000 points (here up to ${whole(most)}) are drawn with the lowest and the highest \
of each of 999 equal parts, so spikes stay, and with the parts’ means; the smoothed loss is made of these.`;
  redraw();
};

/** Everything that depends on the controls. */
const redraw = () => {
  const now = visible();
  cards.replaceChildren(...now.map(card));
  charts().forEach(chart => chart.draw());
  operations.update(now);
  const names = now.map(run => run.name);
  if ([...choice.options].map(option => option.value).join('\n') !== names.join('\n')) {
    choice.replaceChildren(...now.map(run => html('option', { value: run.name }, run.name)));
  }
  choiceLabel.hidden = now.length < 2;
  const run = chosen();
  if (run) choice.value = run.name;
  perRun.forEach(part => part.update(run));
  const speaking = now.filter(one => one.samples.length);
  for (const [name, one] of sampleCards) {
    if (!speaking.some(other => other.name === name)) {
      one.root.remove();
      sampleCards.delete(name);
    }
  }
  for (const one of speaking) {
    if (sampleCards.has(one.name)) sampleCards.get(one.name).update(one);
    else {
      sampleCards.set(one.name, sampleCard(one));
      samples.append(sampleCards.get(one.name).root);
    }
  }
  noSamples.hidden = speaking.length > 0;
  historyBox.replaceChildren(history(now));
  figuresBox.replaceChildren(figures(now));
};

update(JSON.parse(document.getElementById('data').textContent));

if (document.body.dataset.live) {
  const EVERY = 2000;
  const say = (state, words) => {
    live.hidden = false;
    live.dataset.state = state;
    live.textContent = words;
  };
  const poll = async () => {
    setTimeout(poll, EVERY);
    let all = null;
    try {
      const answer = await fetch('./api/runs.json', { cache: 'no-store' });
      if (answer.ok) all = await answer.json();
    } catch {
      // Said below.
    }
    if (!all) return say('lost', 'connection lost');
    update(all);
    say('live', runs.every(run => run.end) ? 'live, ended' : 'live');
  };
  say('live', 'live');
  setTimeout(poll, EVERY);
}
