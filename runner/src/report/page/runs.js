// What is asked of a run: its curves, in the units of the axis, smoothed.

const COLOURS = 8;

/** Looks up what the figures need of the data as it is embedded. */
const understand = (run, index) => {
  const start = run.starts[run.starts.length - 1] || {};
  const settings = run.settings || start.config || {};
  const last = curve => (curve && curve.value.length ? curve.value[curve.value.length - 1] : undefined);
  const curve = (event, key) => run.curves.find(c => c.event === event && c.key === key);
  const steps = run.curves.map(c => c.step[c.step.length - 1]).filter(isNumber);
  const done = run.end && run.end.event === 'done' ? run.end : null;
  const step = Math.max(
    0,
    ...steps,
    ...(done ? [done.steps] : []),
    ...(run.end && run.end.step ? [run.end.step] : []),
  );
  const val = curve('eval', 'val_loss');
  let best = null;
  if (val) {
    val.value.forEach((value, n) => {
      if (isNumber(value) && (best === null || value < best.value)) best = { value, step: val.step[n] };
    });
  }
  return {
    ...run,
    index,
    start,
    config: settings,
    curve,
    step,
    done,
    best,
    colour: `var(--run-${index % COLOURS})`,
    dash: index < COLOURS ? null : index < 2 * COLOURS ? '7 4' : '2 3',
    loss: last(curve('step', 'loss')),
    maxSteps: settings.max_steps,
    tokensPerStep: start.tokens_per_step,
    seconds: done ? done.seconds : last({ value: run.clock.value }),
  };
};

/** Seconds of training after a step, between those that are known. */
const secondsAt = (run, step) => {
  const { step: steps, value } = run.clock;
  if (!steps.length) return NaN;
  const at = rank(steps, step);
  const [s0, v0] = at === 0 ? [0, 0] : [steps[at - 1], value[at - 1]];
  if (at === steps.length) {
    // Beyond the last, at the speed until there.
    return s0 ? v0 + ((step - s0) * v0) / s0 : v0;
  }
  return v0 + ((step - s0) * (value[at] - v0)) / Math.max(1, steps[at] - s0);
};

/** The axes to choose from. */
const AXES = {
  step: { name: 'step', title: 'Step', of: (run, step) => step, text: short, exact: whole, ticks },
  tokens: {
    name: 'tokens',
    title: 'Tokens',
    of: (run, step) => step * (run.tokensPerStep || NaN),
    text: short,
    exact: whole,
    ticks,
  },
  time: {
    name: 'time',
    title: 'Trained for',
    of: secondsAt,
    text: clockText,
    exact: duration,
    ticks: timeTicks,
  },
};

/** A curve's points on an axis, without what is no number. */
const pointsOf = (run, curve, axis) => {
  const points = { x: [], y: [], step: [] };
  if (!curve) return points;
  curve.step.forEach((step, n) => {
    const x = axis.of(run, step);
    if (!isNumber(x)) return;
    points.x.push(x);
    points.y.push(isNumber(curve.value[n]) ? curve.value[n] : NaN);
    points.step.push(step);
  });
  return points;
};

/**
 * A moving average, forwards and then backwards, so that it does not lag; `strength` says how far it looks.
 * Of curves that were thinned the means of what was left out count.
 */
const smoothed = (run, curve, axis, strength) => {
  const points = pointsOf(run, curve && curve.mean ? { ...curve, ...curve.mean } : curve, axis);
  // How many points have most of the weight: up to a tenth of all.
  const keep = 1 - 1 / (1 + (strength ** 2 * points.y.length) / 10);
  const pass = values => {
    let [average, weight] = [0, 0];
    return values.map(value => {
      if (!isNumber(value)) return NaN;
      average = keep * average + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return average / weight;
    });
  };
  points.y = pass(pass(points.y).reverse()).reverse();
  return points;
};

/** What there is in an object, level by level: `planned_bytes.total`. */
const flat = (value, name = '', found = []) => {
  if (value !== null && typeof value === 'object') {
    const entries = Object.entries(value);
    if (!entries.length) name && found.push([name, Array.isArray(value) ? '[]' : '{}']);
    // A list of plain values is one value.
    else if (Array.isArray(value) && value.every(v => v === null || typeof v !== 'object'))
      found.push([name, value.join(', ')]);
    else for (const [key, inner] of entries) flat(inner, name ? `${name}.${key}` : key, found);
  } else {
    found.push([name, value]);
  }
  return found;
};

/** Any value in a table. */
const shown = value =>
  value === undefined
    ? '–'
    : value === null
      ? 'none'
      : value === ''
        ? '""'
        : typeof value === 'number'
          ? plainNumber(value)
          : typeof value === 'string' && /^\s|\s$|\n/.test(value)
            ? JSON.stringify(value)
            : String(value);
const plainNumber = value =>
  Number.isInteger(value) && Math.abs(value) >= 1e4
    ? whole(value)
    : Number.isInteger(value)
      ? String(value)
      : digits(value, 7);
