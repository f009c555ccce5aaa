-- All statements that Python sends while it serves, except COPY, with psycopg's placeholders. Most call the SQL function of their name.
-- They run under the search path of whoever connects. If no built-in function or operator takes exactly the types of the arguments, write
-- its schema or a cast, because otherwise an overload that somebody created in public could be called. tests/database/test_overloads.py
-- checks this.

-- name: ping
SELECT 1

-- name: set_timeouts
-- The timeouts apply until the transaction ends.
SELECT set_config('statement_timeout', %(statement)s, true), set_config('lock_timeout', %(lock)s, true)

-- name: set_lock_timeout
-- The timeout applies until the transaction has committed.
SELECT set_config('lock_timeout', %(timeout)s, true)

-- name: set_session
-- Each session begins with the settings of its role and its database. Under some of them psycopg can't read the answers, numbers are
-- rounded, or our statements and the bodies of functions mean something else.
SELECT
    set_config('DateStyle', 'ISO', false), set_config('IntervalStyle', 'postgres', false),
    set_config('standard_conforming_strings', 'on', false), set_config('quote_all_identifiers', 'off', false),
    set_config('extra_float_digits', '1', false), set_config('array_nulls', 'on', false),
    set_config('default_transaction_isolation', 'read committed', false)

-- name: vector_types
SELECT t.typname AS name, t.oid, t.typarray AS array_oid FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
WHERE n.nspname = 'public' AND t.typname IN ('vector', 'halfvec')

-- name: composite_type
SELECT
    t.typname AS name, t.oid, t.typarray AS array_oid,
    pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) AS field_names,
    pg_catalog.array_agg(a.atttypid ORDER BY a.attnum) AS field_types
FROM pg_type AS t
JOIN pg_namespace AS n ON n.oid = t.typnamespace
JOIN pg_attribute AS a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = 'loracomp' AND t.typname = %(name)s
GROUP BY t.oid

-- name: check_health
SELECT * FROM loracomp.check_health()

-- name: register_base_model
SELECT loracomp.register_base_model(
    name => %(name)s, source => %(source)s, revision => %(revision)s, fingerprint => %(fingerprint)s,
    architecture => %(architecture)s, context_length => %(context_length)s::int,
    parameter_count => %(parameter_count)s::bigint, modules => %(modules)s, make_default => %(make_default)s,
    has_chat_template => %(has_chat_template)s
) AS id

-- name: set_default_base_model
SELECT loracomp.set_default_base_model(name => %(name)s)

-- name: remove_base_model
SELECT loracomp.remove_base_model(name => %(name)s, force => %(force)s)

-- name: find_base_model
SELECT b.name, b.source, b.revision, b.fingerprint, b.modules FROM loracomp.find_base_model(%(name)s) AS b

-- name: list_base_models
SELECT base_model AS name, b.* FROM bi.dim_base_model AS b ORDER BY is_default DESC, name

-- name: set_encoder
SELECT loracomp.set_encoder(
    name => %(name)s, source => %(source)s, revision => %(revision)s, fingerprint => %(fingerprint)s,
    identity => %(identity)s, dimensions => %(dimensions)s::int, input_version => %(input_version)s::smallint
) AS is_ready

-- name: start_routing
SELECT loracomp.start_routing(encoder => %(encoder)s, input_version => %(input_version)s::smallint)

-- name: resize_embeddings
-- Sets the column's length to the length of the encoder's vectors. The storage is set to PLAIN again, because changing the type resets it.
DO $$ BEGIN EXECUTE pg_catalog.format(
    'ALTER TABLE loracomp.example_embedding ALTER COLUMN embedding TYPE public.halfvec(%s), '
    'ALTER COLUMN embedding SET STORAGE PLAIN', (SELECT e.dimensions FROM loracomp.encoder AS e)
); END $$

-- name: embedding_dimensions
SELECT loracomp.embedding_dimensions() AS dimensions

-- name: show_encoder
SELECT * FROM loracomp.show_encoder()

-- name: examples_without_text
SELECT * FROM loracomp.examples_without_text()

-- name: end_with_the_client
-- Ends the session if the client vanishes, even during a statement, which may take hours.
SELECT set_config('client_connection_check_interval', '1s', false), set_config('statement_timeout', '0', false)

-- name: drop_embedding_index
SELECT loracomp.drop_embedding_index(incoming => %(incoming)s::bigint) AS dropped

-- name: build_embedding_index
SELECT loracomp.build_embedding_index()

-- name: add_task
SELECT loracomp.add_task(
    name => %(name)s, family => %(family)s, description => %(description)s, reader_role => %(reader_role)s::name
) AS added

-- name: delete_task
SELECT * FROM loracomp.delete_task(task => %(task)s, force => %(force)s)

-- name: list_tasks
SELECT * FROM loracomp.list_tasks()

-- name: add_examples
SELECT * FROM loracomp.add_examples(task => %(task)s, examples => %(examples)s)

-- name: draw_unembedded
SELECT * FROM loracomp.draw_unembedded(
    encoder => %(encoder)s, input_version => %(input_version)s::smallint, task => %(task)s,
    after => %(after)s::bigint, max_examples => %(max_examples)s::int
)

-- name: has_unembedded
SELECT loracomp.has_unembedded() AS has

-- name: count_unembedded
SELECT loracomp.count_unembedded(task => %(task)s) AS unembedded

-- name: find_unembedded
SELECT * FROM loracomp.find_unembedded(task => %(task)s, content_hashes => %(content_hashes)s)

-- name: add_embeddings
-- Vectors are sent in binary, as for route_jobs.
SELECT loracomp.add_embeddings(
    example_ids => %(example_ids)s::bigint[], embeddings => %(embeddings)b::public.vector[],
    encoder => %(encoder)s, input_version => %(input_version)s::smallint, text_hashes => %(text_hashes)s::bytea[]
) AS added

-- name: stored_examples
SELECT
    e.split, e.prompt, e.choices, e.label, e.content_hash, e.hash_version,
    pg_catalog.concat_ws(', ', e.source_ref, 'example ' || e.id::text) AS source_ref
FROM loracomp.example AS e
JOIN loracomp.task AS t ON t.id = e.task_id
WHERE t.name = %(task)s AND e.prompt IS NOT NULL AND e.label IS NOT NULL
ORDER BY e.id

-- name: stage_adapter
SELECT * FROM loracomp.stage_adapter(
    task => %(task)s, base_model => %(base_model)s, name => %(name)s, rank => %(rank)s::int, alpha => %(alpha)s::float8,
    use_rslora => %(use_rslora)s, scaling => %(scaling)s::float8, target_modules => %(target_modules)s,
    parameter_count => %(parameter_count)s::bigint, byte_count => %(byte_count)s::bigint, sha256 => %(sha256)s,
    digest => %(digest)s, config => %(config)s, training => %(training)s
)

-- name: activate_adapter
SELECT loracomp.activate_adapter(adapter => %(adapter_id)s::text, force => %(force)s) AS replaced

-- name: retire_adapter
SELECT loracomp.retire_adapter(adapter => %(adapter_id)s::text)

-- name: delete_adapter
SELECT * FROM loracomp.delete_adapter(adapter => %(adapter)s, base_model => %(base_model)s, force => %(force)s)

-- name: find_adapter
SELECT a.*, t.name AS task, b.name AS base_model, b.source AS base_source, b.revision AS base_revision
FROM loracomp.find_adapter(adapter => %(adapter)s, base_model => %(base_model)s) AS a
JOIN loracomp.task AS t ON t.id = a.task_id
JOIN loracomp.base_model AS b ON b.id = a.base_model_id

-- name: list_adapters
SELECT
    adapter_id, label AS adapter, adapter AS name, version, status, task, base_model, rank, alpha, use_rslora,
    parameter_count, byte_count, sha256, created_by, created_at, activated_at, retired_at
FROM bi.dim_adapter
ORDER BY base_model, name, version DESC

-- name: known_digests
SELECT t.name AS task, a.digest
FROM loracomp.adapter AS a
JOIN loracomp.task AS t ON t.id = a.task_id
JOIN loracomp.base_model AS b ON b.id = a.base_model_id
WHERE b.name = %(base_model)s

-- name: read_adapters
SELECT * FROM loracomp.read_adapters(adapter_ids => %(adapter_ids)s::int[])

-- name: set_policy
SELECT * FROM loracomp.set_policy(name => %(name)s, settings => %(settings)s)

-- name: list_policies
SELECT * FROM loracomp.policy AS p WHERE p.name = coalesce(%(name)s, p.name) ORDER BY p.name <> 'default', p.name

-- name: measure_task
SELECT * FROM loracomp.measure_task(
    task => %(task)s, rows => %(rows)s::int, adapters => %(adapters)s::int, split => %(split)s,
    base_model => %(base_model)s
)

-- name: measure_adapter
SELECT * FROM loracomp.measure_adapter(adapter_id => %(adapter_id)s::int, tasks => %(tasks)s::int)

-- name: compare_adapters
SELECT
    o.against, c.examples AS n, c.accuracy, c.other_accuracy, c.mean_difference AS gain, c.standard_error, c.better,
    c.worse, c.p
FROM (
    SELECT NULL::int AS id, 'base model' AS against
    UNION ALL
    SELECT o.adapter_id, o.label
    FROM bi.dim_adapter AS a
    JOIN bi.dim_adapter AS o ON (o.task, o.base_model, o.status) = (a.task, a.base_model, 'active')
    WHERE a.adapter_id = %(adapter_id)s::int AND o.adapter_id <> a.adapter_id
) AS o
CROSS JOIN LATERAL loracomp.compare_adapters(%(adapter_id)s::int, o.id) AS c
WHERE c.examples > 0
ORDER BY o.id NULLS FIRST

-- name: compare_with_base
SELECT
    t.adapter, t.adapter_status AS status, c.examples AS n, c.other_accuracy AS base_accuracy, c.accuracy,
    c.mean_difference AS gain, c.standard_error, c.better, c.worse, c.p
FROM bi.transfer AS t
CROSS JOIN LATERAL loracomp.compare_adapters(t.adapter_id, task => t.task) AS c
WHERE t.task = %(task)s AND t.base_model = %(base_model)s
ORDER BY t.adapter_task <> t.task, t.mean_gain DESC, t.adapter

-- name: add_measurements
SELECT loracomp.add_measurements(
    task => %(task)s, base_model => %(base_model)s, choice_normalization => %(choice_normalization)s,
    content_hashes => %(content_hashes)s::bytea[], base_scores => %(base_scores)s::float8[],
    bases_are_right => %(bases_are_right)s::boolean[], adapter_digests => %(adapter_digests)s::text[],
    gains => %(gains)s::real[], are_right => %(are_right)s::boolean[]
) AS added

-- name: list_measurements
SELECT * FROM loracomp.list_measurements(task => %(task)s)

-- routing

-- name: route_jobs
-- Vectors travel in binary: as text they would take eighty times as long.
SELECT * FROM loracomp.route_jobs(
    job_ids => %(job_ids)s::bigint[], embeddings => %(embeddings)b::public.vector[],
    encoder => %(encoder)s::text, input_version => %(input_version)s::smallint
)

-- name: route_vectors
SELECT u.ordinal, r.task, r.weight
FROM pg_catalog.unnest(%(embeddings)b::public.vector[]) WITH ORDINALITY AS u (embedding, ordinal)
CROSS JOIN LATERAL loracomp.route(embedding => u.embedding, base_model => %(base_model)s::text) AS r
WHERE r.weight > 0::float8
ORDER BY u.ordinal, r.weight DESC, r.task

-- name: read_labelled
SELECT * FROM loracomp.read_labelled(
    job_ids => %(job_ids)s::bigint[], tokens => %(tokens)s::bigint[], example_ids => %(example_ids)s::bigint[]
)

-- name: refresh_reports
SELECT * FROM loracomp.refresh_reports(older_than => %(older_than)s::interval)

-- name: tune_routing
SELECT loracomp.tune_routing() AS ef_search

-- name: claim_jobs
SELECT * FROM loracomp.claim_jobs(
    worker => %(worker)s, base_model => %(base_model)s, batch_size => %(batch_size)s::int, lease => %(lease)s,
    held_ids => %(held_ids)s::bigint[], from_start => %(from_start)s, token => %(token)s::bigint, kinds => %(kinds)s
)

-- name: renew_leases
SELECT loracomp.renew_leases(ids => %(ids)s::bigint[], tokens => %(tokens)s::bigint[], lease => %(lease)s) AS id

-- name: record_predictions
-- Arrays travel in binary. Traces go back as they came from route_jobs.
SELECT loracomp.record_predictions(
    predictions => %(predictions)b::loracomp.predicted[], traces => %(traces)b::loracomp.route_trace[], device => %(device)s,
    base_model => %(base_model)s, base_fingerprint => %(base_fingerprint)s, encoder => %(encoder)s,
    code_version => %(code_version)s
) AS id

-- name: plan_measurements
SELECT * FROM loracomp.plan_measurements(job_ids => %(job_ids)s::bigint[])

-- name: record_measurements
SELECT loracomp.record_measurements(results => %(results)b::loracomp.measured[]) AS id

-- name: labelled_scores
SELECT * FROM loracomp.labelled_scores(job_ids => %(job_ids)s::bigint[])

-- name: record_evidence
SELECT loracomp.record_evidence(
    task_id => %(task_id)s, base_model_id => %(base_model_id)s, choices => %(choices)s::text[],
    adapter_ids => %(adapter_ids)s::integer[], log_likelihoods => %(log_likelihoods)s::double precision[],
    read_at => %(read_at)s
)

-- name: fail_jobs
SELECT loracomp.fail_jobs(
    ids => %(ids)s::bigint[], tokens => %(tokens)s::bigint[], codes => %(codes)s, messages => %(messages)s,
    retries => %(retries)s
) AS id

-- name: release_jobs
SELECT loracomp.release_jobs(ids => %(ids)s::bigint[], tokens => %(tokens)s::bigint[]) AS id

-- name: release_claim
SELECT loracomp.release_claim(token => %(token)s::bigint) AS id

-- name: what_waits
SELECT
    loracomp.retry_waits(base_model => %(base_model)s) OR loracomp.rows_run(base_model => %(base_model)s) AS soon,
    NOT loracomp.queue_is_empty(base_model => %(base_model)s) OR loracomp.rows_wait() AS others

-- name: keep_house
SELECT loracomp.keep_house(worker => %(worker)s, lease => %(lease)s, grace => %(grace)s) AS elected

-- name: leave_house
SELECT loracomp.leave_house(worker => %(worker)s)

-- name: note_step
SELECT loracomp.note_step(
    step => %(step)s, worker => %(worker)s, handled => %(handled)s::int, took_s => %(took_s)s::float8, error => %(error)s
)

-- name: wake_jobs
SELECT loracomp.wake_jobs() AS handled

-- name: rescue_jobs
SELECT loracomp.rescue_jobs() AS handled

-- name: ask_rows
SELECT loracomp.ask_rows() AS handled

-- name: take_answers
SELECT loracomp.take_answers() AS handled

-- name: measure_corrections
SELECT loracomp.measure_corrections() AS handled

-- name: report_worker
SELECT loracomp.report_worker(
    name => %(name)s, status => %(status)s, host => %(host)s, pid => %(pid)s::int, code_version => %(code_version)s,
    base_model => %(base_model)s, device => %(device)s, running_s => %(running_s)s::float8,
    looked_s => %(looked_s)s::float8, silent_after_s => %(silent_after_s)s::float8, claimed => %(claimed)s::bigint,
    succeeded => %(succeeded)s::bigint, failed => %(failed)s::bigint, released => %(released)s::bigint,
    dropped => %(dropped)s::bigint
)

-- name: has_revision
SELECT to_regclass('loracomp.alembic_version') IS NOT NULL AS found

-- name: schema_revision
SELECT version_num AS revision FROM loracomp.alembic_version

-- name: applied_files
SELECT path, checksum FROM loracomp.sql_object

-- name: oldest_worker
SELECT version_num AS revision, loracomp.oldest_worker() AS oldest_worker FROM loracomp.alembic_version

-- name: make_partitions
SELECT loracomp.make_partitions()::int AS handled

-- name: database_metrics
SELECT * FROM loracomp.database_metrics()

-- name: worker_status
SELECT * FROM loracomp.worker_status ORDER BY status IN ('gone', 'stopped'), base_model, worker

-- name: listen
LISTEN loracomp_job; LISTEN loracomp_keep

-- name: try_prompts
SELECT filled AS prompt, text_at::text FROM loracomp.try_prompts(
    source => %(source)s::regclass, prompt => %(prompt)s, filter => %(filter)s
)

-- name: estimate_answers
SELECT *, time_needed::text AS takes FROM loracomp.estimate_answers(
    source => %(source)s::regclass, prompt => %(prompt)s, filter => %(filter)s
)

-- name: create_answers
SELECT loracomp.create_answers(
    name => %(name)s, source => %(source)s::regclass, prompt => %(prompt)s, choices => %(choices)s,
    descriptions => %(descriptions)s, max_new_tokens => %(max_new_tokens)s, policy => %(policy)s,
    priority => %(priority)s, tags => %(tags)s, backfill => %(backfill)s, filter => %(filter)s,
    certain => %(certain)s, certain_of => %(certain_of)s
) AS name

-- name: alter_answers
SELECT loracomp.alter_answers(
    name => %(name)s::regclass, prompt => %(prompt)s, choices => %(choices)s, descriptions => %(descriptions)s,
    max_new_tokens => %(max_new_tokens)s, policy => %(policy)s, priority => %(priority)s, tags => %(tags)s,
    filter => %(filter)s, paused => %(paused)s, again => %(again)s, certain => %(certain)s, certain_of => %(certain_of)s
)

-- name: rows_for_a_person
SELECT * FROM loracomp.rows_for_a_person(name => %(name)s::regclass, n => %(n)s)

-- name: list_answers
-- For one declaration, or for all.
SELECT a.* FROM loracomp.list_answers(view => to_regclass(%(name)s), counted => %(counted)s) AS a
WHERE %(name)s::text IS NULL OR a.name::oid = to_regclass(%(name)s)::oid

-- name: list_answer_rows
SELECT * FROM loracomp.list_answer_rows(name => to_regclass(%(name)s), after => %(after)s, n => %(n)s)

-- name: rows_to_correct
SELECT * FROM loracomp.rows_to_correct(name => %(name)s::regclass, n => %(n)s, visitor => %(visitor)s)

-- name: correct_row
SELECT loracomp.correct_row(name => to_regclass(%(name)s), key => %(key)s, answer => %(answer)s, seen => %(seen)s,
    job_id => %(job_id)s)

-- name: rows_to_review
SELECT * FROM loracomp.rows_to_review(name => %(name)s::regclass, n => %(n)s)

-- name: count_corrections
SELECT * FROM loracomp.count_corrections(name => %(name)s::regclass)

-- name: choice_scores
-- No row for a login that may not see the job.
SELECT p.choice_scores FROM loracomp.prediction AS p WHERE p.job_id = %(job_id)s

-- name: list_corrections
SELECT * FROM loracomp.list_corrections(name => %(name)s::regclass)

-- name: key_columns
-- The columns of a declaration's view before `answer`.
SELECT coalesce(pg_catalog.array_agg(k.attname::text ORDER BY k.attnum), '{}') AS names
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_attribute AS k ON k.attrelid = a.attrelid AND k.attnum > 0 AND k.attnum < a.attnum
WHERE a.attrelid = %(name)s::regclass::oid AND a.attname = 'answer'

-- name: correct_answer
SELECT loracomp.correct_answer(name => %(name)s::regclass, key => %(key)s, answer => %(answer)s)

-- name: most_helpful_adapter
-- Only adapters whose training record names the tasks that they were trained on, because what an adapter learnt from a restricted task must not
-- leak. `loracomp train` writes such a record.
SELECT a.*, b.name AS base_model, b.source AS base_source, b.revision AS base_revision
FROM bi.transfer AS t
JOIN loracomp.adapter AS a ON a.id = t.adapter_id
JOIN loracomp.task AS o ON o.id = a.task_id
JOIN loracomp.base_model AS b ON b.id = a.base_model_id
WHERE t.task = %(task)s AND o.name <> t.task AND o.reader_role IS NULL AND b.name = %(base_model)s
    AND a.status = 'active' AND a.training ? 'tasks_seen'
ORDER BY t.accuracy DESC NULLS LAST, t.mean_gain DESC LIMIT 1

-- name: compare_with_corrections
SELECT * FROM loracomp.compare_with_corrections(adapter_id => %(adapter_id)s::int)

-- name: cancel_answers
SELECT loracomp.cancel_answers(name => %(name)s::regclass) AS cancelled

-- name: drop_answers
SELECT loracomp.drop_answers(name => %(name)s::regclass)

-- name: insert_job
SELECT loracomp.insert_job(job => %(job)s) AS id

-- name: wait_for_job
SELECT loracomp.wait_for_job(id => %(id)s, timeout => %(timeout)s) AS status

-- name: may_work
SELECT has_function_privilege(p.oid, 'EXECUTE') AS may
FROM pg_proc AS p WHERE p.pronamespace = 'loracomp'::regnamespace::oid AND p.proname = 'claim_jobs'

-- name: job_trace
SELECT * FROM loracomp.job_trace WHERE job_id = %(id)s

-- name: sample_traces
SELECT * FROM loracomp.job_trace AS t
WHERE t.job_id IN (
    SELECT j.id FROM loracomp.job AS j
    WHERE j.status = 'succeeded' AND j.kind = 'predict' AND j.finished_at >= %(since)s
    ORDER BY random() LIMIT %(sample)s
)
ORDER BY t.job_id

-- name: explain_job
SELECT loracomp.explain_job(id => %(id)s) AS explanation

-- name: retrieved_examples
SELECT e.* FROM loracomp.retrieved_example AS e WHERE e.job_id = %(id)s ORDER BY e.ordinal

-- name: composed_adapters
SELECT a.*, coalesce(a.adapter || '@' || a.version::text, 'adapter ' || a.adapter_id::text) AS named
FROM loracomp.composed_adapter AS a WHERE a.job_id = %(id)s ORDER BY a.ordinal

-- name: job_attempts
SELECT a.* FROM loracomp.job_attempt AS a WHERE a.job_id = %(id)s ORDER BY a.started_at

-- name: insert_with_expected
INSERT INTO loracomp.job (prompt, choices, max_new_tokens, stop, policy, tags, expected)
VALUES (%(prompt)s, %(choices)s, %(max_new_tokens)s, %(stop)s, %(policy)s, %(tags)s, %(expected)s)
RETURNING id

-- name: job_results
SELECT r.*, t.expected, t.correct, t.label_scores, t.output_tokens,
    (SELECT c.choice || ': ' || c.description
     FROM unnest(t.choices, t.descriptions, t.description_similarities) AS c (choice, description, similarity)
     WHERE c.similarity IS NOT NULL ORDER BY c.similarity DESC LIMIT 1) AS closest,
    (SELECT string_agg(pg_catalog.format('%%s %%s', e.task, to_char(e.similarity, 'FM0.00')), ', ' ORDER BY e.ordinal)
     FROM loracomp.retrieved_example AS e WHERE e.job_id = r.job_id AND e.ordinal <= 3) AS nearest
FROM loracomp.job_result AS r JOIN loracomp.job_trace AS t USING (job_id)
WHERE r.job_id = ANY (%(ids)s)
ORDER BY r.job_id

-- pages and reports

-- name: begin_page
-- The settings apply until the transaction ends. A page soon gives up a lock that somebody holds, because all visitors share the threads in which
-- pages are made. JIT is off, because compiling these queries takes longer than running them.
SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '1s', true), set_config('jit', 'off', true)

-- name: queues
SELECT * FROM loracomp.queue_health ORDER BY base_model

-- name: reported_queues
SELECT * FROM bi.queue_health ORDER BY base_model

-- name: reported_workers
SELECT * FROM bi.worker_status ORDER BY status IN ('gone', 'stopped'), base_model, worker

-- name: newest_jobs
-- Without jobs that measure adapters, which loracomp inserts by itself.
SELECT r.job_id, r.status, left(r.prompt, 300) AS prompt, left(r.output, 300) AS output, r.confidence
FROM (SELECT j.id FROM loracomp.job AS j WHERE j.kind <> 'measure' ORDER BY j.id DESC LIMIT 21) AS n
JOIN loracomp.job_result AS r ON r.job_id = n.id ORDER BY r.job_id DESC

-- name: readable_tasks
SELECT * FROM loracomp.readable_tasks() ORDER BY family, name

-- name: reported_tasks
SELECT task AS name, family, description FROM bi.dim_task ORDER BY family, task

-- name: transfer
SELECT t.adapter, t.adapter_task, t.task, t.mean_gain, t.n
FROM bi.transfer AS t JOIN bi.dim_base_model AS b ON b.base_model = t.base_model AND b.is_default
WHERE t.adapter_status = 'active' ORDER BY t.adapter_task, t.adapter, t.task

-- name: jobs_by_day
-- Also days on which no jobs ended.
SELECT
    d.day::date AS day, coalesce(sum(j.jobs), 0)::bigint AS total,
    coalesce(sum(j.jobs) FILTER (WHERE j.status = 'succeeded'), 0)::bigint AS succeeded,
    coalesce(sum(j.jobs) FILTER (WHERE j.status = 'failed'), 0)::bigint AS failed,
    coalesce(sum(j.jobs) FILTER (WHERE j.status = 'cancelled'), 0)::bigint AS cancelled
FROM generate_series(%(since)s::timestamp, %(until)s::timestamp, interval '1 day') AS d (day)
LEFT JOIN bi.jobs_by_day AS j ON j.day = d.day::date AND NOT j.has_expected GROUP BY d.day ORDER BY d.day

-- name: failures
SELECT coalesce(reason, 'unknown') AS reason, sum(jobs)::bigint AS jobs, count(*) OVER () AS found FROM bi.jobs_by_day
WHERE day >= %(since)s AND status = 'failed' AND NOT has_expected GROUP BY 1 ORDER BY jobs DESC, reason LIMIT 12

-- name: waits
-- For each day, the percentiles of the base model with the most answers, because percentiles of several base models can't be added up.
SELECT DISTINCT ON (day, step) day, step, n, p50_ms / 1000::float8 AS p50_s, p95_ms / 1000::float8 AS p95_s FROM bi.latency_by_day
WHERE day >= %(since)s AND step IN ('queue', 'total') ORDER BY day, step, n DESC

-- name: accuracy
SELECT a.policy, a.n, a.correct::float8 / a.n::float8 AS accuracy, i.low, i.high
FROM (
    SELECT policy, sum(n)::bigint AS n, sum(correct)::bigint AS correct FROM bi.accuracy_by_day
    WHERE day >= %(since)s GROUP BY policy
) AS a CROSS JOIN LATERAL bi.wilson_interval(a.correct, a.n) AS i ORDER BY accuracy DESC, a.policy

-- name: adapter_usage
SELECT
    coalesce(adapter, 'deleted') AS adapter, sum(jobs)::bigint AS jobs,
    coalesce(sum(weight) / nullif(sum(sum(weight)) OVER (), 0::float8), 0::float8) AS share, count(*) OVER () AS found
FROM bi.adapter_usage_by_day WHERE day >= %(since)s
GROUP BY adapter ORDER BY share DESC LIMIT 15

-- name: companions
-- Counts only the newest answers, because no report counts pairs of adapters by day, and of each only the eight adapters with the largest weights,
-- because calibrated jobs use all adapters that there are.
SELECT a.adapter || ' + ' || b.adapter AS pair, sum(c.jobs)::bigint AS jobs, count(*) OVER () AS found
FROM (
    SELECT m.adapters, count(*) AS jobs
    FROM (
        SELECT pg_catalog.array_agg(coalesce(adapter, task)) AS adapters FROM bi.composed_adapter
        WHERE job_id > (SELECT job_id - 5000 FROM bi.composed_adapter ORDER BY job_id DESC LIMIT 1) AND ordinal <= 8
        GROUP BY job_id HAVING max(day) >= %(since)s
    ) AS m GROUP BY m.adapters
) AS c CROSS JOIN LATERAL pg_catalog.unnest(c.adapters) AS a (adapter)
CROSS JOIN LATERAL pg_catalog.unnest(c.adapters) AS b (adapter)
WHERE b.adapter > a.adapter GROUP BY a.adapter, b.adapter ORDER BY jobs DESC, pair LIMIT 15

-- name: answers_of_tag
SELECT value, choice, sum(n)::bigint AS n, sum(asked)::bigint AS asked, sum(correct)::bigint AS correct, count(*) OVER () AS found
FROM bi.answers_by_tag WHERE day >= %(since)s AND tag = %(tag)s AND (%(value)s::text IS NULL OR value = %(value)s)
GROUP BY value, choice ORDER BY n DESC, value, choice LIMIT 40

-- name: report_age
SELECT age_s FROM bi.report_refresh
