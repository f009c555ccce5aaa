-- The schema of 1.0. What stands between the two lines of dashes is written from loracomp/database/tables/.
CREATE SCHEMA IF NOT EXISTS bi;

-- Constraints call these, so they belong to the tables and not to sql/. plpgsql keeps its plans: with functions in language sql, each
-- INSERT of a job took 0.1 ms more. White space: Unicode's, and the four separators that Python counts as such.
CREATE FUNCTION loracomp.white_space() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '\t-\r\u001c- \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000';
COMMENT ON FUNCTION loracomp.white_space IS
'White space as the inside of a regular expression''s brackets: the same on every server, where \s is not.';
CREATE FUNCTION loracomp.is_blank(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $$
BEGIN
    RETURN value COLLATE pg_catalog."C" OPERATOR(pg_catalog.!~)
        ('[^' OPERATOR(pg_catalog.||) loracomp.white_space() OPERATOR(pg_catalog.||) ']');
END
$$;
COMMENT ON FUNCTION loracomp.is_blank IS 'Whether a text has nothing but white space; null for null.';
CREATE FUNCTION loracomp.texts_are_not_blank(texts text[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN NOT EXISTS (
        SELECT FROM pg_catalog.unnest(texts) AS t (value) WHERE t.value IS NULL OR loracomp.is_blank(t.value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_are_not_blank IS 'Whether no text of the array is null or only white space.';
CREATE FUNCTION loracomp.texts_are_distinct(texts text[]) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT pg_catalog.count(DISTINCT t.value) OPERATOR(pg_catalog.=) pg_catalog.count(t.value)
        FROM pg_catalog.unnest(texts) AS t (value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_are_distinct IS 'Whether no text stands in the array twice.';
CREATE FUNCTION loracomp.texts_length(texts text[]) RETURNS bigint LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT coalesce(pg_catalog.sum(pg_catalog.char_length(t.value)), 0) FROM pg_catalog.unnest(texts) AS t (value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.texts_length IS 'Characters of all texts of the array together.';
CREATE FUNCTION loracomp.longest_text(texts text[]) RETURNS integer LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT coalesce(pg_catalog.max(pg_catalog.octet_length(t.value)), 0) FROM pg_catalog.unnest(texts) AS t (value)
    );
END
$$;
COMMENT ON FUNCTION loracomp.longest_text IS 'Bytes of the longest text of the array; 0 if there is none.';

-- ---- tables
CREATE SEQUENCE loracomp.late_answer_seen START WITH 0 MINVALUE 0;
CREATE SEQUENCE loracomp.rescued_jobs START WITH 0 MINVALUE 0;
CREATE SEQUENCE loracomp.refused_inserts START WITH 0 MINVALUE 0;
CREATE TABLE loracomp.audit_event (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    actor name DEFAULT session_user NOT NULL,
    entity TEXT NOT NULL,
    entity_id BIGINT,
    entity_name TEXT,
    action TEXT NOT NULL,
    old_status TEXT,
    new_status TEXT,
    attempt INTEGER,
    worker TEXT,
    reason TEXT,
    before JSONB,
    after JSONB,
    login name DEFAULT NULLIF(SESSION_USER, COALESCE((NULLIF(current_setting('role'::text), 'none'::text))::name, SESSION_USER)),
    CONSTRAINT action_must_be_insert_update_or_delete CHECK (action IN ('insert', 'update', 'delete'))
)
 PARTITION BY RANGE (entity, entity_id);
CREATE INDEX audit_event_of_job ON loracomp.audit_event (entity_id) WHERE entity = 'job';
CREATE INDEX audit_event_by_entity ON loracomp.audit_event (entity, at) WHERE entity <> 'job';
COMMENT ON TABLE loracomp.audit_event IS 'Audit log: who changed what, and when. Triggers write it; rows are never changed. Events of jobs are partitioned by ranges of job ids.';
COMMENT ON COLUMN loracomp.audit_event.id IS 'Number of the event; later events have higher numbers.';
COMMENT ON COLUMN loracomp.audit_event.at IS 'When the change was made.';
COMMENT ON COLUMN loracomp.audit_event.actor IS 'Role that made the change.';
COMMENT ON COLUMN loracomp.audit_event.entity IS 'Table that changed, such as job or policy.';
COMMENT ON COLUMN loracomp.audit_event.entity_id IS 'Id of the row; null if it has none.';
COMMENT ON COLUMN loracomp.audit_event.entity_name IS 'Name of the row; null if it has none.';
COMMENT ON COLUMN loracomp.audit_event.action IS 'What was done: insert, update or delete.';
COMMENT ON COLUMN loracomp.audit_event.old_status IS 'Status before the change; only for jobs and adapters.';
COMMENT ON COLUMN loracomp.audit_event.new_status IS 'Status after the change; only for jobs and adapters.';
COMMENT ON COLUMN loracomp.audit_event.attempt IS 'Number of the job''s attempts after the change.';
COMMENT ON COLUMN loracomp.audit_event.worker IS 'Worker that made the change.';
COMMENT ON COLUMN loracomp.audit_event.reason IS 'Error code, or the reason that the operator gave.';
COMMENT ON COLUMN loracomp.audit_event.before IS 'The row before the change, without prompts.';
COMMENT ON COLUMN loracomp.audit_event.after IS 'The row after the change, without prompts.';
COMMENT ON COLUMN loracomp.audit_event.login IS 'Role that logged in, if the session had switched to another role (actor) by SET ROLE; otherwise null.';
COMMENT ON CONSTRAINT action_must_be_insert_update_or_delete ON loracomp.audit_event IS 'one of insert, update, delete';
CREATE TABLE loracomp.late_answer (
    job_id BIGINT NOT NULL,
    PRIMARY KEY (job_id)
);
COMMENT ON TABLE loracomp.late_answer IS 'Jobs whose answer is not in answer_row yet, because a session had locked the row. Claims copy it later.';
COMMENT ON COLUMN loracomp.late_answer.job_id IS 'The job, which has ended.';
CREATE TABLE loracomp.answer_hint (
    declaration_id INTEGER NOT NULL,
    written_in BIGINT DEFAULT (pg_current_xact_id())::text::bigint NOT NULL,
    key TEXT[] NOT NULL
)
 WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX answer_hint_order ON loracomp.answer_hint (declaration_id, written_in);
COMMENT ON TABLE loracomp.answer_hint IS 'Rows that were written since the last claim looked. Triggers append; nothing waits for anything here.';
COMMENT ON COLUMN loracomp.answer_hint.declaration_id IS 'The declaration.';
COMMENT ON COLUMN loracomp.answer_hint.written_in IS 'Transaction that wrote it.';
COMMENT ON COLUMN loracomp.answer_hint.key IS 'Key of a row that may have changed; empty: look at all.';
CREATE TABLE loracomp.queue_limit (
    id SMALLINT DEFAULT 1 NOT NULL,
    per_submitter BIGINT,
    PRIMARY KEY (id),
    CONSTRAINT there_is_one_row_of_queue_limits CHECK (id = 1),
    CONSTRAINT per_submitter_must_be_between_1_and_1000000000 CHECK (per_submitter BETWEEN 1 AND 1000000000)
);
COMMENT ON TABLE loracomp.queue_limit IS 'How many jobs may wait. set_queue_limits changes it; jobs of administrators are not limited.';
COMMENT ON COLUMN loracomp.queue_limit.id IS 'Always 1.';
COMMENT ON COLUMN loracomp.queue_limit.per_submitter IS 'Most jobs of one submitter that may wait; null: no limit.';
CREATE TABLE loracomp.base_model (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    revision TEXT,
    fingerprint TEXT NOT NULL,
    architecture TEXT NOT NULL,
    context_length INTEGER NOT NULL,
    parameter_count BIGINT NOT NULL,
    modules JSONB NOT NULL,
    is_default BOOLEAN DEFAULT false NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    has_chat_template BOOLEAN DEFAULT false NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT base_model_name_is_taken UNIQUE (name),
    CONSTRAINT base_model_name_must_not_be_blank CHECK (NOT loracomp.is_blank(name)),
    CONSTRAINT base_model_name_must_be_at_most_300_bytes CHECK (octet_length(name) <= 300),
    CONSTRAINT modules_must_be_nested_at_most_32_deep CHECK (modules = '{}' OR NOT jsonb_path_exists(modules, 'strict $.**{33}')),
    CONSTRAINT fingerprint_must_be_a_sha256 CHECK (fingerprint ~ '^[0-9a-f]{64}$'),
    CONSTRAINT context_length_must_be_positive CHECK (context_length BETWEEN 1 AND 100000000)
);
CREATE UNIQUE INDEX one_default_base_model ON loracomp.base_model (is_default) WHERE is_default;
COMMENT ON TABLE loracomp.base_model IS 'Frozen causal language models. Each adapter was trained for one of them.';
COMMENT ON COLUMN loracomp.base_model.id IS 'Internal number; people use the name.';
COMMENT ON COLUMN loracomp.base_model.name IS 'Name by which jobs ask for it.';
COMMENT ON COLUMN loracomp.base_model.source IS 'Where it was loaded from: hub id, folder, GGUF file, or package:NAME of an installed package.';
COMMENT ON COLUMN loracomp.base_model.revision IS 'Revision on the hub; null if the source has none.';
COMMENT ON COLUMN loracomp.base_model.fingerprint IS 'Sha256 of the original weight files.';
COMMENT ON COLUMN loracomp.base_model.architecture IS 'Class of the model in transformers, such as LlamaForCausalLM.';
COMMENT ON COLUMN loracomp.base_model.context_length IS 'Most tokens that it can read: prompt and answer together.';
COMMENT ON COLUMN loracomp.base_model.parameter_count IS 'Number of parameters of the model.';
COMMENT ON COLUMN loracomp.base_model.modules IS 'Modules that adapters may change: name to [d_out, d_in]; adapters are checked against it.';
COMMENT ON COLUMN loracomp.base_model.is_default IS 'Whether jobs that name no base model use this one.';
COMMENT ON COLUMN loracomp.base_model.created_at IS 'When the row was made.';
COMMENT ON COLUMN loracomp.base_model.has_chat_template IS 'Whether its tokenizer has a chat template.';
CREATE TABLE loracomp.encoder (
    id SMALLINT DEFAULT 1 NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    revision TEXT,
    fingerprint TEXT NOT NULL,
    dimensions INTEGER NOT NULL,
    input_version SMALLINT DEFAULT 1 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT a_database_has_one_encoder CHECK (id = 1),
    CONSTRAINT encoder_name_must_be_at_most_300_bytes CHECK (octet_length(name) <= 300),
    CONSTRAINT an_index_takes_vectors_of_at_most_4000_dimensions CHECK (dimensions BETWEEN 1 AND 4000)
);
COMMENT ON TABLE loracomp.encoder IS 'The frozen sentence encoder that embeds examples and jobs.';
COMMENT ON COLUMN loracomp.encoder.id IS 'Always 1: a database has one encoder.';
COMMENT ON COLUMN loracomp.encoder.name IS 'Name of the encoder.';
COMMENT ON COLUMN loracomp.encoder.source IS 'Where it was loaded from: hub id, folder, or package:NAME of an installed package.';
COMMENT ON COLUMN loracomp.encoder.revision IS 'Revision on the hub; null if the source has none.';
COMMENT ON COLUMN loracomp.encoder.fingerprint IS 'Sha256 of the original weight files.';
COMMENT ON COLUMN loracomp.encoder.dimensions IS 'Length of the vectors that it makes.';
COMMENT ON COLUMN loracomp.encoder.input_version IS 'Format of the text that it embeds. 1: prompt, newline, choices joined by '' | ''. 2: prompt and choices embedded separately, each half of the vector. 3: as 2, with the lengths of prompt and choices and the number of choices.';
COMMENT ON COLUMN loracomp.encoder.created_at IS 'When the row was made.';
CREATE TABLE loracomp.next_encoder (
    id SMALLINT DEFAULT 1 NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    revision TEXT,
    fingerprint TEXT NOT NULL,
    dimensions INTEGER NOT NULL,
    input_version SMALLINT DEFAULT 1 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT a_database_changes_to_one_encoder_at_a_time CHECK (id = 1),
    CONSTRAINT encoder_name_must_be_at_most_300_bytes CHECK (octet_length(name) <= 300),
    CONSTRAINT an_index_takes_vectors_of_at_most_4000_dimensions CHECK (dimensions BETWEEN 1 AND 4000)
);
COMMENT ON TABLE loracomp.next_encoder IS 'The encoder to which the database is being changed; its embeddings are in next_embedding, a table made for them.';
COMMENT ON COLUMN loracomp.next_encoder.id IS 'Always 1: a database changes to one encoder at a time.';
COMMENT ON COLUMN loracomp.next_encoder.name IS 'Name of the encoder.';
COMMENT ON COLUMN loracomp.next_encoder.source IS 'Where it was loaded from: hub id, folder, or package:NAME of an installed package.';
COMMENT ON COLUMN loracomp.next_encoder.revision IS 'Revision on the hub; null if the source has none.';
COMMENT ON COLUMN loracomp.next_encoder.fingerprint IS 'Sha256 of the original weight files.';
COMMENT ON COLUMN loracomp.next_encoder.dimensions IS 'Length of the vectors that it makes.';
COMMENT ON COLUMN loracomp.next_encoder.input_version IS 'Format of the text that it embeds. 1: prompt, newline, choices joined by '' | ''. 2: prompt and choices embedded separately, each half of the vector. 3: as 2, with the lengths of prompt and choices and the number of choices.';
COMMENT ON COLUMN loracomp.next_encoder.created_at IS 'When the row was made.';
CREATE TABLE loracomp.task (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    name TEXT NOT NULL,
    family TEXT DEFAULT 'other' NOT NULL,
    description TEXT DEFAULT '' NOT NULL,
    reader_role name,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT task_name_is_taken UNIQUE (name),
    CONSTRAINT task_name_must_not_be_blank CHECK (NOT loracomp.is_blank(name)),
    CONSTRAINT task_name_must_be_at_most_300_bytes CHECK (octet_length(name) <= 300)
);
COMMENT ON TABLE loracomp.task IS 'Tasks, such as piqa, with training examples and adapters.';
COMMENT ON COLUMN loracomp.task.id IS 'Internal number; people use the name.';
COMMENT ON COLUMN loracomp.task.name IS 'Name of the task, such as piqa.';
COMMENT ON COLUMN loracomp.task.family IS 'Family of the task, such as nli; for reports.';
COMMENT ON COLUMN loracomp.task.description IS 'One sentence about what the task asks for.';
COMMENT ON COLUMN loracomp.task.reader_role IS 'Role whose members'' jobs may use the task; null: everybody''s may.';
COMMENT ON COLUMN loracomp.task.created_at IS 'When the row was made.';
CREATE TABLE loracomp.principal_axis (
    place SMALLINT NOT NULL,
    axis public.HALFVEC NOT NULL,
    PRIMARY KEY (place)
);
COMMENT ON TABLE loracomp.principal_axis IS 'Axes in whose directions the embeddings differ most; none unless there are very many embeddings.';
COMMENT ON COLUMN loracomp.principal_axis.place IS 'Place of the axis, from 1.';
COMMENT ON COLUMN loracomp.principal_axis.axis IS 'Unit vector, at right angles to the other axes.';
CREATE TABLE loracomp.reduced_embedding (
    example_id BIGINT NOT NULL,
    task_id INTEGER NOT NULL,
    embedding public.HALFVEC(256) NOT NULL,
    PRIMARY KEY (example_id)
);
CREATE INDEX reduced_embedding_task ON loracomp.reduced_embedding (task_id);
COMMENT ON TABLE loracomp.reduced_embedding IS 'Embeddings in fewer dimensions, by which routing finds candidates; empty if there are no principal axes.';
COMMENT ON COLUMN loracomp.reduced_embedding.example_id IS 'The example.';
COMMENT ON COLUMN loracomp.reduced_embedding.task_id IS 'Task of the example; a copy, as in example_embedding.';
COMMENT ON COLUMN loracomp.reduced_embedding.embedding IS 'Coordinates of the example''s embedding on the principal axes.';
CREATE TABLE loracomp.reported_tag (
    key TEXT NOT NULL,
    PRIMARY KEY (key),
    CONSTRAINT reported_tag_must_not_be_blank CHECK (NOT loracomp.is_blank(key)),
    CONSTRAINT reported_tag_must_be_at_most_100_characters CHECK (char_length(key) <= 100)
);
COMMENT ON TABLE loracomp.reported_tag IS 'Keys of the tags that views of schema bi show. set_reported_tags changes them.';
COMMENT ON COLUMN loracomp.reported_tag.key IS 'Key of a tag whose values analysts may see.';
CREATE TABLE loracomp.report_refresh (
    report TEXT NOT NULL,
    refreshed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    seconds DOUBLE PRECISION,
    PRIMARY KEY (report)
);
COMMENT ON TABLE loracomp.report_refresh IS 'The reports that refresh_reports computes, with their age.';
COMMENT ON COLUMN loracomp.report_refresh.report IS 'Name of a table with rows by day, in schema loracomp.';
COMMENT ON COLUMN loracomp.report_refresh.refreshed_at IS 'When the report was last refreshed; it counts the jobs that ended until then.';
COMMENT ON COLUMN loracomp.report_refresh.seconds IS 'Seconds that the last refresh of all reports took; null if there was none.';
CREATE TABLE loracomp.report_day (
    day DATE NOT NULL,
    jobs BIGINT,
    times INTERVAL,
    is_closed BOOLEAN DEFAULT false NOT NULL,
    PRIMARY KEY (day)
);
COMMENT ON TABLE loracomp.report_day IS 'Days for which reports were computed, and from which jobs.';
COMMENT ON COLUMN loracomp.report_day.day IS 'Day in UTC on which jobs ended.';
COMMENT ON COLUMN loracomp.report_day.jobs IS 'Number of jobs from which the day''s reports were computed; null: they must be computed again.';
COMMENT ON COLUMN loracomp.report_day.times IS 'Sum of the times of day at which these jobs ended; it shows whether they are still the same.';
COMMENT ON COLUMN loracomp.report_day.is_closed IS 'Whether the day''s reports are final, because purge_jobs has deleted jobs of it or of a later day.';
CREATE TABLE loracomp.accuracy_by_day (
    day DATE NOT NULL,
    evaluation TEXT,
    own_task TEXT,
    policy TEXT NOT NULL,
    base_model TEXT NOT NULL,
    asked BIGINT NOT NULL,
    n BIGINT NOT NULL,
    correct BIGINT NOT NULL,
    CONSTRAINT accuracy_by_day_key UNIQUE NULLS NOT DISTINCT (day, evaluation, own_task, policy, base_model)
);
COMMENT ON TABLE loracomp.accuracy_by_day IS 'How often answers were right, by day and unmasked task.';
COMMENT ON COLUMN loracomp.accuracy_by_day.day IS 'Day in UTC on which the jobs ended.';
COMMENT ON COLUMN loracomp.accuracy_by_day.evaluation IS 'Name of the evaluation; null for other jobs whose right answer is known.';
COMMENT ON COLUMN loracomp.accuracy_by_day.own_task IS 'Task of the examples that the jobs were made from; null if unknown.';
COMMENT ON COLUMN loracomp.accuracy_by_day.policy IS 'Name of the policy: the settings of routing and merging. Controls such as base are policies too.';
COMMENT ON COLUMN loracomp.accuracy_by_day.base_model IS 'Base model that answered.';
COMMENT ON COLUMN loracomp.accuracy_by_day.asked IS 'Number of jobs with a known right answer that ended; failed and cancelled jobs count too.';
COMMENT ON COLUMN loracomp.accuracy_by_day.n IS 'Number of jobs that were answered.';
COMMENT ON COLUMN loracomp.accuracy_by_day.correct IS 'Number of answers that equal the expected answer exactly.';
CREATE TABLE loracomp.routing_by_day (
    day DATE NOT NULL,
    policy TEXT NOT NULL,
    base_model TEXT NOT NULL,
    is_evaluation BOOLEAN NOT NULL,
    task TEXT NOT NULL,
    jobs_first BIGINT NOT NULL,
    jobs_inside BIGINT NOT NULL,
    mass DOUBLE PRECISION,
    entropy DOUBLE PRECISION,
    CONSTRAINT routing_by_day_pkey PRIMARY KEY (day, policy, base_model, is_evaluation, task)
);
COMMENT ON TABLE loracomp.routing_by_day IS 'Sums of the tasks'' probabilities over the jobs of a day, from which views of bi compute means.';
COMMENT ON COLUMN loracomp.routing_by_day.day IS 'Day in UTC on which the jobs ended.';
COMMENT ON COLUMN loracomp.routing_by_day.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN loracomp.routing_by_day.base_model IS 'Base model that answered.';
COMMENT ON COLUMN loracomp.routing_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.routing_by_day.task IS 'Task of at least one retrieved example.';
COMMENT ON COLUMN loracomp.routing_by_day.jobs_first IS 'Number of answers for which this task was the most probable one; the sum over all tasks is the number of answers.';
COMMENT ON COLUMN loracomp.routing_by_day.jobs_inside IS 'Number of answers in which this task had a weight above 0.';
COMMENT ON COLUMN loracomp.routing_by_day.mass IS 'Sum of this task''s probabilities over the answers.';
COMMENT ON COLUMN loracomp.routing_by_day.entropy IS 'Sum over the answers of -p log2 p, p being this task''s probability; over all tasks it is the sum of entropies in bits.';
CREATE TABLE loracomp.adapter_usage_by_day (
    day DATE NOT NULL,
    policy TEXT NOT NULL,
    base_model TEXT NOT NULL,
    is_evaluation BOOLEAN NOT NULL,
    adapter_id INTEGER NOT NULL,
    task TEXT,
    jobs BIGINT NOT NULL,
    jobs_first BIGINT NOT NULL,
    weight DOUBLE PRECISION,
    CONSTRAINT adapter_usage_by_day_pkey PRIMARY KEY (day, policy, base_model, is_evaluation, adapter_id)
);
COMMENT ON TABLE loracomp.adapter_usage_by_day IS 'Sums over the answers of a day in which an adapter was used, from which views of bi compute shares.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.day IS 'Day in UTC on which the jobs ended.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.base_model IS 'Base model that answered.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.adapter_id IS 'Id of the adapter.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.task IS 'Task that the adapter was trained for, under the name that it had when the jobs were answered.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs IS 'Number of answers in which the adapter was used.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.jobs_first IS 'Number of answers in which the adapter comes first; summed over adapters: the number of answers with adapters.';
COMMENT ON COLUMN loracomp.adapter_usage_by_day.weight IS 'Sum of the adapter''s weights over the answers.';
CREATE TABLE loracomp.latency_by_day (
    day DATE NOT NULL,
    base_model TEXT NOT NULL,
    is_evaluation BOOLEAN NOT NULL,
    step TEXT NOT NULL,
    n BIGINT NOT NULL,
    mean_ms DOUBLE PRECISION NOT NULL,
    p50_ms DOUBLE PRECISION NOT NULL,
    p90_ms DOUBLE PRECISION NOT NULL,
    p95_ms DOUBLE PRECISION NOT NULL,
    p99_ms DOUBLE PRECISION NOT NULL,
    max_ms DOUBLE PRECISION NOT NULL,
    CONSTRAINT latency_by_day_pkey PRIMARY KEY (day, base_model, is_evaluation, step)
);
COMMENT ON TABLE loracomp.latency_by_day IS 'How long each step took for the jobs answered on a day.';
COMMENT ON COLUMN loracomp.latency_by_day.day IS 'Day in UTC on which the jobs ended.';
COMMENT ON COLUMN loracomp.latency_by_day.base_model IS 'Base model that answered.';
COMMENT ON COLUMN loracomp.latency_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.latency_by_day.step IS 'queue: until a worker took the job; total: from the time when the job could start to its answer; or a key of prediction.timings.';
COMMENT ON COLUMN loracomp.latency_by_day.n IS 'Number of answers.';
COMMENT ON COLUMN loracomp.latency_by_day.mean_ms IS 'Mean time in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p50_ms IS 'Median time in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p90_ms IS '90th percentile in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p95_ms IS '95th percentile in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.p99_ms IS '99th percentile in milliseconds.';
COMMENT ON COLUMN loracomp.latency_by_day.max_ms IS 'Longest time in milliseconds.';
CREATE TABLE loracomp.jobs_by_day (
    day DATE NOT NULL,
    submitted_by TEXT NOT NULL,
    policy TEXT NOT NULL,
    base_model TEXT NOT NULL,
    is_evaluation BOOLEAN NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    jobs BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    compute_s DOUBLE PRECISION NOT NULL,
    routed BIGINT NOT NULL,
    fell_back BIGINT NOT NULL,
    CONSTRAINT jobs_by_day_key UNIQUE NULLS NOT DISTINCT (day, submitted_by, policy, base_model, is_evaluation, kind, status, reason)
);
COMMENT ON TABLE loracomp.jobs_by_day IS 'Number of ended jobs and what they cost, by day and by how they ended.';
COMMENT ON COLUMN loracomp.jobs_by_day.day IS 'Day in UTC on which the jobs ended.';
COMMENT ON COLUMN loracomp.jobs_by_day.submitted_by IS 'Database role that submitted the jobs.';
COMMENT ON COLUMN loracomp.jobs_by_day.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN loracomp.jobs_by_day.base_model IS 'Base model that the jobs were for.';
COMMENT ON COLUMN loracomp.jobs_by_day.is_evaluation IS 'Whether the jobs come from evaluations rather than from people.';
COMMENT ON COLUMN loracomp.jobs_by_day.kind IS 'Kind of the jobs: predict, route or measure.';
COMMENT ON COLUMN loracomp.jobs_by_day.status IS 'How the jobs ended: succeeded, failed or cancelled.';
COMMENT ON COLUMN loracomp.jobs_by_day.reason IS 'Short name of the error that ended the jobs; null if none did, or if it is unknown.';
COMMENT ON COLUMN loracomp.jobs_by_day.jobs IS 'Number of jobs that ended.';
COMMENT ON COLUMN loracomp.jobs_by_day.attempts IS 'Number of attempts of the jobs that ended.';
COMMENT ON COLUMN loracomp.jobs_by_day.prompt_tokens IS 'Tokens in the prompts of the jobs that were answered.';
COMMENT ON COLUMN loracomp.jobs_by_day.output_tokens IS 'Tokens that were scored or generated for the jobs that were answered.';
COMMENT ON COLUMN loracomp.jobs_by_day.compute_s IS 'Seconds of computing for the jobs that were answered, without waiting: their shares of their batches'' steps and of the model''s time.';
COMMENT ON COLUMN loracomp.jobs_by_day.routed IS 'Number of answers that were routed by retrieval.';
COMMENT ON COLUMN loracomp.jobs_by_day.fell_back IS 'Number of these for which no adapter was used: the base model answered alone.';
CREATE TABLE loracomp.answers_by_tag (
    day DATE NOT NULL,
    tag TEXT NOT NULL,
    value TEXT NOT NULL,
    label TEXT NOT NULL,
    policy TEXT NOT NULL,
    base_model TEXT NOT NULL,
    n BIGINT NOT NULL,
    asked BIGINT NOT NULL,
    correct BIGINT NOT NULL,
    CONSTRAINT answers_by_tag_pkey PRIMARY KEY (day, tag, value, label, policy, base_model)
);
COMMENT ON TABLE loracomp.answers_by_tag IS 'Number of answers by day, tag and label.';
COMMENT ON COLUMN loracomp.answers_by_tag.day IS 'Day in UTC on which the jobs ended.';
COMMENT ON COLUMN loracomp.answers_by_tag.tag IS 'Key of the tag.';
COMMENT ON COLUMN loracomp.answers_by_tag.value IS 'Value of the tag as text, cut to 200 characters.';
COMMENT ON COLUMN loracomp.answers_by_tag.label IS 'The choice that was the answer; empty if the answer was generated text.';
COMMENT ON COLUMN loracomp.answers_by_tag.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN loracomp.answers_by_tag.base_model IS 'Base model that answered.';
COMMENT ON COLUMN loracomp.answers_by_tag.n IS 'Number of answers with this tag, value, label, policy and base model on this day, without evaluations.';
COMMENT ON COLUMN loracomp.answers_by_tag.asked IS 'Number of the answers (n) whose right answer is known.';
COMMENT ON COLUMN loracomp.answers_by_tag.correct IS 'Number of the answers (n) that equal the expected answer exactly.';
CREATE TABLE loracomp.worker (
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    code_version TEXT NOT NULL,
    base_model TEXT NOT NULL,
    device TEXT NOT NULL,
    login name DEFAULT session_user NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    looked_at TIMESTAMP WITH TIME ZONE,
    silent_after_s DOUBLE PRECISION NOT NULL,
    claimed BIGINT DEFAULT 0 NOT NULL,
    succeeded BIGINT DEFAULT 0 NOT NULL,
    failed BIGINT DEFAULT 0 NOT NULL,
    released BIGINT DEFAULT 0 NOT NULL,
    dropped BIGINT DEFAULT 0 NOT NULL,
    PRIMARY KEY (name),
    CONSTRAINT worker_status_must_be_a_known_one CHECK (status IN ('idle', 'busy', 'stopping', 'stopped')),
    CONSTRAINT name_must_be_at_most_300_characters CHECK (char_length(name) <= 300),
    CONSTRAINT host_must_be_at_most_300_characters CHECK (char_length(host) <= 300),
    CONSTRAINT code_version_must_be_at_most_300_characters CHECK (char_length(code_version) <= 300),
    CONSTRAINT device_must_be_at_most_300_characters CHECK (char_length(device) <= 300),
    CONSTRAINT base_model_must_be_at_most_300_bytes CHECK (octet_length(base_model) <= 300),
    CONSTRAINT counts_must_not_be_negative CHECK (least(claimed, succeeded, failed, released, dropped) >= 0),
    CONSTRAINT silent_after_s_must_be_between_0_and_86400 CHECK (silent_after_s BETWEEN 0 AND 86400)
)
 WITH (fillfactor = 50);
COMMENT ON TABLE loracomp.worker IS 'Workers and what they last reported. The view worker_status shows who is alive.';
COMMENT ON COLUMN loracomp.worker.name IS 'Name of the worker, also in leases and predictions.';
COMMENT ON COLUMN loracomp.worker.status IS 'Last reported status: idle, busy, stopping or stopped. The view worker_status shows who is gone.';
COMMENT ON COLUMN loracomp.worker.host IS 'Machine that the worker runs on.';
COMMENT ON COLUMN loracomp.worker.pid IS 'Process id of the worker on its host.';
COMMENT ON COLUMN loracomp.worker.code_version IS 'Version of loracomp that the worker runs.';
COMMENT ON COLUMN loracomp.worker.base_model IS 'Base model that the worker serves.';
COMMENT ON COLUMN loracomp.worker.device IS 'Device and number type of the base model, such as cpu/bfloat16.';
COMMENT ON COLUMN loracomp.worker.login IS 'Database role that the worker logged in as.';
COMMENT ON COLUMN loracomp.worker.started_at IS 'When the worker started, by the database''s clock.';
COMMENT ON COLUMN loracomp.worker.seen_at IS 'When the worker last reported.';
COMMENT ON COLUMN loracomp.worker.looked_at IS 'When the worker last asked for jobs; null if never.';
COMMENT ON COLUMN loracomp.worker.silent_after_s IS 'Seconds without a report after which the worker counts as gone.';
COMMENT ON COLUMN loracomp.worker.claimed IS 'Number of jobs that the worker claimed since it started.';
COMMENT ON COLUMN loracomp.worker.succeeded IS 'Number of jobs that the worker answered.';
COMMENT ON COLUMN loracomp.worker.failed IS 'Number of failures that the worker recorded, including attempts that are retried.';
COMMENT ON COLUMN loracomp.worker.released IS 'Number of jobs that the worker gave back without counting the attempt.';
COMMENT ON COLUMN loracomp.worker.dropped IS 'Number of results that came too late, after the lease was lost, and were not recorded.';
COMMENT ON CONSTRAINT worker_status_must_be_a_known_one ON loracomp.worker IS 'one of idle, busy, stopping, stopped';
CREATE TABLE loracomp.sql_object (
    path TEXT NOT NULL,
    position INTEGER NOT NULL,
    drops TEXT[] NOT NULL,
    checksum TEXT NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (path)
);
COMMENT ON TABLE loracomp.sql_object IS 'Files of sql/ that were applied to this database.';
COMMENT ON COLUMN loracomp.sql_object.path IS 'File under sql/.';
COMMENT ON COLUMN loracomp.sql_object.position IS 'Position in the order in which files are applied; objects are dropped in reverse order.';
COMMENT ON COLUMN loracomp.sql_object.drops IS 'Statements that drop the objects that the file created.';
COMMENT ON COLUMN loracomp.sql_object.checksum IS 'Sha256 of the file when it was applied.';
COMMENT ON COLUMN loracomp.sql_object.applied_at IS 'When the file was applied.';
CREATE TABLE loracomp.policy (
    name TEXT NOT NULL,
    description TEXT DEFAULT '' NOT NULL,
    router TEXT DEFAULT 'retrieval' NOT NULL,
    k INTEGER DEFAULT 30 NOT NULL,
    temperature DOUBLE PRECISION DEFAULT 0.1 NOT NULL,
    top_p DOUBLE PRECISION DEFAULT 0.95 NOT NULL,
    max_adapters INTEGER DEFAULT 8 NOT NULL,
    min_similarity DOUBLE PRECISION DEFAULT 0.0 NOT NULL,
    weighting TEXT DEFAULT 'similarity' NOT NULL,
    strategy TEXT DEFAULT 'cat' NOT NULL,
    density DOUBLE PRECISION DEFAULT 0.5 NOT NULL,
    seed INTEGER DEFAULT 0 NOT NULL,
    choice_normalization TEXT DEFAULT 'tokens' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    contrast DOUBLE PRECISION DEFAULT 0 NOT NULL,
    min_share DOUBLE PRECISION DEFAULT 0 NOT NULL,
    gain_prior DOUBLE PRECISION DEFAULT 0.1 NOT NULL,
    gain_margin DOUBLE PRECISION DEFAULT 0 NOT NULL,
    chat_template TEXT DEFAULT 'generation' NOT NULL,
    calibration_rows INTEGER DEFAULT 64 NOT NULL,
    PRIMARY KEY (name),
    CONSTRAINT policy_name_must_not_be_blank CHECK (NOT loracomp.is_blank(name)),
    CONSTRAINT policy_name_must_be_at_most_300_bytes CHECK (octet_length(name) <= 300),
    CONSTRAINT router_must_be_a_known_one CHECK (router IN ('retrieval', 'own_task', 'random', 'random_parameters', 'base')),
    CONSTRAINT k_must_be_between_1_and_200 CHECK (k BETWEEN 1 AND 200),
    CONSTRAINT temperature_must_be_between_0_0001_and_100 CHECK (temperature BETWEEN 0.0001 AND 100),
    CONSTRAINT top_p_must_be_between_0_0001_and_1 CHECK (top_p BETWEEN 0.0001 AND 1),
    CONSTRAINT max_adapters_must_be_between_1_and_64 CHECK (max_adapters BETWEEN 1 AND 64),
    CONSTRAINT min_similarity_must_be_between_minus_1_and_1 CHECK (min_similarity BETWEEN -1 AND 1),
    CONSTRAINT weighting_must_be_similarity_uniform_or_measured CHECK (weighting IN ('similarity', 'uniform', 'measured')),
    CONSTRAINT strategy_must_be_a_known_one CHECK (strategy IN ('linear', 'cat', 'ties', 'magnitude_prune', 'dare_linear', 'dare_ties', 'linear_rescaled')),
    CONSTRAINT density_must_be_between_0_0001_and_1 CHECK (density BETWEEN 0.0001 AND 1),
    CONSTRAINT seed_must_not_be_negative CHECK (seed >= 0),
    CONSTRAINT choice_normalization_must_be_none_characters_or_tokens CHECK (choice_normalization IN ('none', 'characters', 'tokens')),
    CONSTRAINT contrast_must_be_between_0_and_1 CHECK (contrast BETWEEN 0 AND 1),
    CONSTRAINT min_share_must_be_between_0_and_1 CHECK (min_share BETWEEN 0 AND 1),
    CONSTRAINT gain_prior_must_be_between_0_and_1000 CHECK (gain_prior BETWEEN 0 AND 1000),
    CONSTRAINT gain_margin_must_be_between_minus_1000_and_1000 CHECK (gain_margin BETWEEN -1000 AND 1000),
    CONSTRAINT chat_template_must_be_generation_always_or_never CHECK (chat_template IN ('generation', 'always', 'never')),
    CONSTRAINT calibration_rows_must_be_0_or_between_4_and_1000 CHECK (calibration_rows = 0 OR calibration_rows BETWEEN 4 AND 1000)
);
COMMENT ON TABLE loracomp.policy IS 'Named settings of routing and merging. A job names a policy; its trace keeps the settings that were used.';
COMMENT ON COLUMN loracomp.policy.name IS 'Name of the policy. Jobs that name none use ''default''.';
COMMENT ON COLUMN loracomp.policy.description IS 'What the policy is for.';
COMMENT ON COLUMN loracomp.policy.router IS 'How adapters are chosen: retrieval; or, for comparison, own_task, random, random_parameters or base.';
COMMENT ON COLUMN loracomp.policy.k IS 'Number of nearest examples to retrieve.';
COMMENT ON COLUMN loracomp.policy.temperature IS 'Temperature of the softmax over similarities.';
COMMENT ON COLUMN loracomp.policy.top_p IS 'Nucleus sampling: the most probable tasks are kept until their probabilities add up to this.';
COMMENT ON COLUMN loracomp.policy.max_adapters IS 'Most adapters in a composition.';
COMMENT ON COLUMN loracomp.policy.min_similarity IS 'If the nearest example''s similarity is lower, no adapter is used and the base model answers alone.';
COMMENT ON COLUMN loracomp.policy.weighting IS 'Weights of the kept tasks. similarity: their probabilities, normalised to 1. uniform: equal. measured: the adapters'' expected gains; adapters that are not expected to help are left out.';
COMMENT ON COLUMN loracomp.policy.strategy IS 'How adapters are merged: cat, linear, linear_rescaled, ties, magnitude_prune, dare_linear or dare_ties.';
COMMENT ON COLUMN loracomp.policy.density IS 'Share of the factors'' elements that ties, magnitude_prune and dare_* keep.';
COMMENT ON COLUMN loracomp.policy.seed IS 'Seed of the random masks of dare_*, and of the routers random and random_parameters.';
COMMENT ON COLUMN loracomp.policy.choice_normalization IS 'What a choice''s log-likelihood is divided by: none (nothing), its characters or its tokens.';
COMMENT ON COLUMN loracomp.policy.created_at IS 'When the row was made.';
COMMENT ON COLUMN loracomp.policy.updated_at IS 'When it was last changed.';
COMMENT ON COLUMN loracomp.policy.contrast IS 'A choice''s score is its log-likelihood with adapters minus contrast times that of the base model.';
COMMENT ON COLUMN loracomp.policy.min_share IS 'Tasks with a smaller weight are left out, and the others'' weights are normalised again; the first task stays.';
COMMENT ON COLUMN loracomp.policy.gain_prior IS 'Shrinks expected gains towards 0, as if examples with gain 0 and this much weight had been retrieved too.';
COMMENT ON COLUMN loracomp.policy.gain_margin IS 'With weighting measured, an adapter is used only if its expected gain, in nats, is above this.';
COMMENT ON COLUMN loracomp.policy.chat_template IS 'Which prompts stand in the base model''s chat template, where it has one: generation (those without choices), always, never.';
COMMENT ON COLUMN loracomp.policy.calibration_rows IS 'With weighting measured, for a task without an adapter: most of its labelled examples on which biases of the choices are fitted, 4 to 1000; 0: no biases.';
COMMENT ON CONSTRAINT density_must_be_between_0_0001_and_1 ON loracomp.policy IS 'between 0.0001 and 1';
COMMENT ON CONSTRAINT seed_must_not_be_negative ON loracomp.policy IS 'at least 0';
COMMENT ON CONSTRAINT min_share_must_be_between_0_and_1 ON loracomp.policy IS 'between 0 and 1';
COMMENT ON CONSTRAINT top_p_must_be_between_0_0001_and_1 ON loracomp.policy IS 'between 0.0001 and 1';
COMMENT ON CONSTRAINT calibration_rows_must_be_0_or_between_4_and_1000 ON loracomp.policy IS '0, or between 4 and 1000';
COMMENT ON CONSTRAINT weighting_must_be_similarity_uniform_or_measured ON loracomp.policy IS 'one of similarity, uniform, measured';
COMMENT ON CONSTRAINT contrast_must_be_between_0_and_1 ON loracomp.policy IS 'between 0 and 1';
COMMENT ON CONSTRAINT gain_prior_must_be_between_0_and_1000 ON loracomp.policy IS 'between 0 and 1000';
COMMENT ON CONSTRAINT max_adapters_must_be_between_1_and_64 ON loracomp.policy IS 'between 1 and 64';
COMMENT ON CONSTRAINT router_must_be_a_known_one ON loracomp.policy IS 'one of retrieval, own_task, random, random_parameters, base';
COMMENT ON CONSTRAINT choice_normalization_must_be_none_characters_or_tokens ON loracomp.policy IS 'one of none, characters, tokens';
COMMENT ON CONSTRAINT chat_template_must_be_generation_always_or_never ON loracomp.policy IS 'one of generation, always, never';
COMMENT ON CONSTRAINT min_similarity_must_be_between_minus_1_and_1 ON loracomp.policy IS 'between -1 and 1';
COMMENT ON CONSTRAINT strategy_must_be_a_known_one ON loracomp.policy IS 'one of linear, cat, ties, magnitude_prune, dare_linear, dare_ties, linear_rescaled';
COMMENT ON CONSTRAINT k_must_be_between_1_and_200 ON loracomp.policy IS 'between 1 and 200';
COMMENT ON CONSTRAINT gain_margin_must_be_between_minus_1000_and_1000 ON loracomp.policy IS 'between -1000 and 1000';
COMMENT ON CONSTRAINT temperature_must_be_between_0_0001_and_100 ON loracomp.policy IS 'between 0.0001 and 100';
CREATE TABLE loracomp.prediction (
    job_id BIGINT NOT NULL,
    output TEXT,
    choice_index INTEGER,
    choice_scores DOUBLE PRECISION[],
    example_ids BIGINT[] DEFAULT '{}' NOT NULL,
    example_tasks TEXT[] DEFAULT '{}' NOT NULL,
    similarities DOUBLE PRECISION[] DEFAULT '{}' NOT NULL,
    tasks TEXT[] DEFAULT '{}' NOT NULL,
    probabilities DOUBLE PRECISION[] DEFAULT '{}' NOT NULL,
    weights DOUBLE PRECISION[] DEFAULT '{}' NOT NULL,
    composed_tasks TEXT[] DEFAULT '{}' NOT NULL,
    adapter_ids INTEGER[] DEFAULT '{}' NOT NULL,
    adapter_sha256 TEXT[] DEFAULT '{}' NOT NULL,
    adapter_weights DOUBLE PRECISION[] DEFAULT '{}' NOT NULL,
    policy_settings JSONB NOT NULL,
    fallback TEXT,
    composition_digest TEXT,
    prompt_tokens INTEGER DEFAULT 0 NOT NULL,
    output_tokens INTEGER DEFAULT 0 NOT NULL,
    timings JSONB DEFAULT '{}' NOT NULL,
    batch_size INTEGER DEFAULT 1 NOT NULL,
    worker TEXT,
    device TEXT,
    attempt INTEGER DEFAULT 1 NOT NULL,
    base_model TEXT NOT NULL,
    base_fingerprint TEXT NOT NULL,
    encoder TEXT NOT NULL,
    code_version TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    submitted_by TEXT NOT NULL,
    eligible_task_count INTEGER,
    expected_gains DOUBLE PRECISION[],
    chat_template BOOLEAN,
    finish_reason TEXT,
    calibration_examples BIGINT[],
    choice_biases DOUBLE PRECISION[],
    label_scores DOUBLE PRECISION[],
    score_weights DOUBLE PRECISION[],
    PRIMARY KEY (job_id),
    CONSTRAINT timings_must_be_numbers_by_step CHECK (jsonb_typeof(timings) = 'object' AND NOT jsonb_path_exists(timings, 'strict $.* ? (@.type() <> "number" || @ < -1000000000000 || @ > 1000000000000 || (@ <> 0 && @ > -0.000000001 && @ < 0.000000001))')),
    CONSTRAINT timings_must_have_at_most_50_steps_named_by_small_letters CHECK (jsonb_array_length(jsonb_path_query_array(timings, '$.keyvalue()')) <= 50 AND NOT jsonb_path_exists(timings, '$.keyvalue() ? (!(@.key like_regex "^[a-z_]{1,50}$"))')),
    CONSTRAINT timings_must_be_at_most_10000_characters CHECK (char_length(timings::text) <= 10000),
    CONSTRAINT timings_must_be_nested_at_most_32_deep CHECK (timings = '{}' OR NOT jsonb_path_exists(timings, 'strict $.**{33}')),
    CONSTRAINT policy_settings_must_be_nested_at_most_32_deep CHECK (policy_settings = '{}' OR NOT jsonb_path_exists(policy_settings, 'strict $.**{33}')),
    CONSTRAINT policy_settings_must_be_at_most_10000_characters CHECK (char_length(policy_settings::text) <= 10000),
    CONSTRAINT output_must_be_at_most_10000000_characters CHECK (char_length(output) <= 10000000),
    CONSTRAINT base_model_must_be_at_most_300_bytes CHECK (octet_length(base_model) <= 300),
    CONSTRAINT fallback_must_be_at_most_1000_characters CHECK (char_length(fallback) <= 1000),
    CONSTRAINT composition_digest_must_be_at_most_1000_characters CHECK (char_length(composition_digest) <= 1000),
    CONSTRAINT worker_must_be_at_most_1000_characters CHECK (char_length(worker) <= 1000),
    CONSTRAINT device_must_be_at_most_1000_characters CHECK (char_length(device) <= 1000),
    CONSTRAINT base_fingerprint_must_be_at_most_1000_characters CHECK (char_length(base_fingerprint) <= 1000),
    CONSTRAINT encoder_must_be_at_most_1000_characters CHECK (char_length(encoder) <= 1000),
    CONSTRAINT code_version_must_be_at_most_1000_characters CHECK (char_length(code_version) <= 1000),
    CONSTRAINT choice_index_must_be_between_1_and_1000 CHECK (choice_index BETWEEN 1 AND 1000),
    CONSTRAINT example_ids_must_be_a_list_of_at_most_1000 CHECK (example_ids = '{}' OR (array_ndims(example_ids) = 1 AND array_lower(example_ids, 1) = 1 AND cardinality(example_ids) <= 1000 AND num_nulls(VARIADIC example_ids) = 0)),
    CONSTRAINT example_tasks_must_be_a_list_of_at_most_1000 CHECK (example_tasks = '{}' OR (array_ndims(example_tasks) = 1 AND array_lower(example_tasks, 1) = 1 AND cardinality(example_tasks) <= 1000 AND num_nulls(VARIADIC example_tasks) = 0)),
    CONSTRAINT similarities_must_be_a_list_of_at_most_1000 CHECK (similarities = '{}' OR (array_ndims(similarities) = 1 AND array_lower(similarities, 1) = 1 AND cardinality(similarities) <= 1000 AND num_nulls(VARIADIC similarities) = 0)),
    CONSTRAINT tasks_must_be_a_list_of_at_most_1000 CHECK (tasks = '{}' OR (array_ndims(tasks) = 1 AND array_lower(tasks, 1) = 1 AND cardinality(tasks) <= 1000 AND num_nulls(VARIADIC tasks) = 0)),
    CONSTRAINT probabilities_must_be_a_list_of_at_most_1000 CHECK (probabilities = '{}' OR (array_ndims(probabilities) = 1 AND array_lower(probabilities, 1) = 1 AND cardinality(probabilities) <= 1000 AND num_nulls(VARIADIC probabilities) = 0)),
    CONSTRAINT weights_must_be_a_list_of_at_most_1000 CHECK (weights = '{}' OR (array_ndims(weights) = 1 AND array_lower(weights, 1) = 1 AND cardinality(weights) <= 1000 AND num_nulls(VARIADIC weights) = 0)),
    CONSTRAINT composed_tasks_must_be_a_list_of_at_most_1000 CHECK (composed_tasks = '{}' OR (array_ndims(composed_tasks) = 1 AND array_lower(composed_tasks, 1) = 1 AND cardinality(composed_tasks) <= 1000 AND num_nulls(VARIADIC composed_tasks) = 0)),
    CONSTRAINT adapter_ids_must_be_a_list_of_at_most_1000 CHECK (adapter_ids = '{}' OR (array_ndims(adapter_ids) = 1 AND array_lower(adapter_ids, 1) = 1 AND cardinality(adapter_ids) <= 1000 AND num_nulls(VARIADIC adapter_ids) = 0)),
    CONSTRAINT adapter_sha256_must_be_a_list_of_at_most_1000 CHECK (adapter_sha256 = '{}' OR (array_ndims(adapter_sha256) = 1 AND array_lower(adapter_sha256, 1) = 1 AND cardinality(adapter_sha256) <= 1000 AND num_nulls(VARIADIC adapter_sha256) = 0)),
    CONSTRAINT adapter_weights_must_be_a_list_of_at_most_1000 CHECK (adapter_weights = '{}' OR (array_ndims(adapter_weights) = 1 AND array_lower(adapter_weights, 1) = 1 AND cardinality(adapter_weights) <= 1000 AND num_nulls(VARIADIC adapter_weights) = 0)),
    CONSTRAINT choice_scores_must_be_a_list_of_at_most_1000 CHECK (choice_scores = '{}' OR (array_ndims(choice_scores) = 1 AND array_lower(choice_scores, 1) = 1 AND cardinality(choice_scores) <= 1000 AND num_nulls(VARIADIC choice_scores) = 0)),
    CONSTRAINT choice_biases_must_be_a_list_of_at_most_1000 CHECK (choice_biases = '{}' OR (array_ndims(choice_biases) = 1 AND array_lower(choice_biases, 1) = 1 AND cardinality(choice_biases) <= 1000 AND num_nulls(VARIADIC choice_biases) = 0)),
    CONSTRAINT label_scores_must_be_a_list_of_at_most_1000 CHECK (label_scores = '{}' OR (array_ndims(label_scores) = 1 AND array_lower(label_scores, 1) = 1 AND cardinality(label_scores) <= 1000 AND num_nulls(VARIADIC label_scores) = 0)),
    CONSTRAINT score_weights_must_be_a_list_of_at_most_1000 CHECK (score_weights = '{}' OR (array_ndims(score_weights) = 1 AND array_lower(score_weights, 1) = 1 AND cardinality(score_weights) <= 1000 AND num_nulls(VARIADIC score_weights) = 0)),
    CONSTRAINT calibration_examples_must_be_a_list_of_at_most_1000 CHECK (calibration_examples = '{}' OR (array_ndims(calibration_examples) = 1 AND array_lower(calibration_examples, 1) = 1 AND cardinality(calibration_examples) <= 1000 AND num_nulls(VARIADIC calibration_examples) = 0)),
    CONSTRAINT expected_gains_must_be_a_list_of_at_most_1000 CHECK (expected_gains = '{}' OR (array_ndims(expected_gains) = 1 AND array_lower(expected_gains, 1) = 1 AND cardinality(expected_gains) <= 1000)),
    CONSTRAINT each_example_has_a_task_and_a_similarity CHECK (cardinality(example_ids) = ALL (ARRAY[cardinality(example_tasks), cardinality(similarities)])),
    CONSTRAINT each_task_has_a_probability_and_a_weight CHECK (cardinality(tasks) = ALL (ARRAY[cardinality(probabilities), cardinality(weights), coalesce(cardinality(expected_gains), cardinality(tasks))])),
    CONSTRAINT each_adapter_has_a_task_a_sha256_and_a_weight CHECK (cardinality(adapter_ids) = ALL (ARRAY[cardinality(composed_tasks), cardinality(adapter_sha256), cardinality(adapter_weights)])),
    CONSTRAINT names_in_a_trace_must_be_at_most_300_bytes CHECK (loracomp.longest_text(example_tasks || tasks || composed_tasks || adapter_sha256) <= 300),
    CONSTRAINT policy_settings_must_hold_numbers_where_policies_do CHECK (jsonb_typeof(policy_settings) = 'object' AND NOT jsonb_path_exists(policy_settings, '$ ? (@.k.type() <> "number" || @.k < -1000000 || @.k > 1000000 || @.temperature.type() <> "number" || @.temperature < -1000000 || @.temperature > 1000000 || @.top_p.type() <> "number" || @.top_p < -1000000 || @.top_p > 1000000 || @.max_adapters.type() <> "number" || @.max_adapters < -1000000 || @.max_adapters > 1000000 || @.density.type() <> "number" || @.density < -1000000 || @.density > 1000000)')),
    CONSTRAINT similarities_must_be_between_minus_2_and_2 CHECK (-2 <= ALL (similarities) AND 2 >= ALL (similarities)),
    CONSTRAINT probabilities_must_be_between_0_and_1 CHECK (0 <= ALL (probabilities) AND 1.001 >= ALL (probabilities)),
    CONSTRAINT weights_must_be_between_0_and_1 CHECK (0 <= ALL (weights) AND 1.001 >= ALL (weights)),
    CONSTRAINT adapter_weights_must_be_between_0_and_1 CHECK (0 <= ALL (adapter_weights) AND 1.001 >= ALL (adapter_weights)),
    CONSTRAINT expected_gains_must_be_finite CHECK (-1e9 <= ALL (array_remove(expected_gains, NULL)) AND 1e9 >= ALL (array_remove(expected_gains, NULL))),
    CONSTRAINT choice_scores_must_be_finite CHECK (-1e9 <= ALL (choice_scores) AND 1e9 >= ALL (choice_scores)),
    CONSTRAINT choice_biases_must_be_finite CHECK (-1e9 <= ALL (choice_biases) AND 1e9 >= ALL (choice_biases)),
    CONSTRAINT label_scores_must_be_finite CHECK (-1e9 <= ALL (label_scores) AND 1e9 >= ALL (label_scores)),
    CONSTRAINT score_weights_must_be_finite CHECK (-1e9 <= ALL (score_weights) AND 1e9 >= ALL (score_weights)),
    CONSTRAINT each_choice_bias_belongs_to_a_score CHECK (choice_biases IS NULL OR coalesce(cardinality(choice_biases) = cardinality(choice_scores), false)),
    CONSTRAINT each_label_score_belongs_to_a_score CHECK (label_scores IS NULL OR coalesce(cardinality(label_scores) = cardinality(choice_scores), false)),
    CONSTRAINT score_weights_must_be_two CHECK (cardinality(score_weights) = 2),
    CONSTRAINT finish_reason_must_be_a_known_one CHECK (finish_reason IN ('end_of_text', 'stop', 'length', 'no_tokens')),
    CONSTRAINT batch_size_must_be_positive CHECK (batch_size BETWEEN 1 AND 1000000),
    CONSTRAINT tokens_must_not_be_negative CHECK (prompt_tokens >= 0 AND output_tokens >= 0)
)
 PARTITION BY RANGE (job_id);
CREATE INDEX prediction_day ON loracomp.prediction USING brin (((created_at AT TIME ZONE 'UTC')::date));
COMMENT ON TABLE loracomp.prediction IS 'Answers, each with its trace (how it was routed and composed) in arrays, which views unnest. Partitioned by ranges of job ids.';
COMMENT ON COLUMN loracomp.prediction.job_id IS 'Job that the prediction answers.';
COMMENT ON COLUMN loracomp.prediction.output IS 'The answer; null for a job of kind route.';
COMMENT ON COLUMN loracomp.prediction.choice_index IS 'Index of the chosen answer in the job''s choices, from 1; null for generated text.';
COMMENT ON COLUMN loracomp.prediction.choice_scores IS 'Log-likelihood of each choice in nats, divided as choice_normalization of the policy says, plus choice_biases and label_scores, and multiplied by the first of score_weights before.';
COMMENT ON COLUMN loracomp.prediction.example_ids IS 'Ids of the retrieved examples, nearest first.';
COMMENT ON COLUMN loracomp.prediction.example_tasks IS 'Task of each example in example_ids.';
COMMENT ON COLUMN loracomp.prediction.similarities IS 'Cosine similarity of each example in example_ids to the job.';
COMMENT ON COLUMN loracomp.prediction.tasks IS 'Tasks of the retrieved examples, most probable first.';
COMMENT ON COLUMN loracomp.prediction.probabilities IS 'Probability of each task in `tasks`.';
COMMENT ON COLUMN loracomp.prediction.weights IS 'Weight with which each task of `tasks` was composed; 0: it was not.';
COMMENT ON COLUMN loracomp.prediction.composed_tasks IS 'Tasks whose adapters were composed into the answer.';
COMMENT ON COLUMN loracomp.prediction.adapter_ids IS 'Adapter of each task in composed_tasks.';
COMMENT ON COLUMN loracomp.prediction.adapter_sha256 IS 'Sha256 of each adapter''s safetensors file.';
COMMENT ON COLUMN loracomp.prediction.adapter_weights IS 'Weight of each adapter in adapter_ids.';
COMMENT ON COLUMN loracomp.prediction.policy_settings IS 'Name and settings of the policy at the time of the answer.';
COMMENT ON COLUMN loracomp.prediction.fallback IS 'Why the base model answered alone; null if adapters were composed.';
COMMENT ON COLUMN loracomp.prediction.composition_digest IS 'Sha256 over what decides the answer: base model, adapters, scalings, weights, strategy, density, seed.';
COMMENT ON COLUMN loracomp.prediction.prompt_tokens IS 'Number of tokens in the prompt.';
COMMENT ON COLUMN loracomp.prediction.output_tokens IS 'Number of tokens scored or generated.';
COMMENT ON COLUMN loracomp.prediction.timings IS 'Milliseconds that each step took for the job''s whole batch: claim, encode, route, load (adapters to the device), compose, calibrate (if choices of the batch have biases), record; of the job: ready (waiting for the model), predict (from the model''s first step until it was answered) and model (its share of the steps meanwhile).';
COMMENT ON COLUMN loracomp.prediction.batch_size IS 'Number of jobs that were answered together.';
COMMENT ON COLUMN loracomp.prediction.worker IS 'Worker that gave the answer.';
COMMENT ON COLUMN loracomp.prediction.device IS 'Device and number type of the base model, such as cpu/bfloat16.';
COMMENT ON COLUMN loracomp.prediction.attempt IS 'Number of the attempt that succeeded.';
COMMENT ON COLUMN loracomp.prediction.base_model IS 'Base model that answered.';
COMMENT ON COLUMN loracomp.prediction.base_fingerprint IS 'Fingerprint of the base model''s weights.';
COMMENT ON COLUMN loracomp.prediction.encoder IS 'Name of the encoder and its input version, such as all-MiniLM-L6-v2/1.';
COMMENT ON COLUMN loracomp.prediction.code_version IS 'Version of loracomp that the worker ran.';
COMMENT ON COLUMN loracomp.prediction.created_at IS 'When the row was made.';
COMMENT ON COLUMN loracomp.prediction.submitted_by IS 'Role that submitted the job; it may see this row.';
COMMENT ON COLUMN loracomp.prediction.eligible_task_count IS 'Number of tasks whose examples were searched.';
COMMENT ON COLUMN loracomp.prediction.expected_gains IS 'Expected gain of the adapter of each task in `tasks`, in nats; null if it was not measured.';
COMMENT ON COLUMN loracomp.prediction.chat_template IS 'Whether the prompt stood in the base model''s chat template.';
COMMENT ON COLUMN loracomp.prediction.finish_reason IS 'What ended generated text: end_of_text, stop, length (max_new_tokens), or no_tokens: it ended before it began.';
COMMENT ON COLUMN loracomp.prediction.calibration_examples IS 'Ids of the labelled examples that were chosen to fit biases on; null: none. choice_biases says whether they were used.';
COMMENT ON COLUMN loracomp.prediction.choice_biases IS 'What was added to each choice''s score, fitted on the right answers of calibration_examples; null: nothing.';
COMMENT ON COLUMN loracomp.prediction.label_scores IS 'Added to each choice''s score: what a classifier on the embeddings of calibration_examples says of the prompt, times its weight; null: nothing.';
COMMENT ON COLUMN loracomp.prediction.score_weights IS 'What the adapters'' log-likelihoods and the classifier''s scores were multiplied by, fitted on the answers of calibration_examples; null: nothing.';
COMMENT ON CONSTRAINT finish_reason_must_be_a_known_one ON loracomp.prediction IS 'one of end_of_text, stop, length, no_tokens';
CREATE TABLE loracomp.declaration (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    view REGCLASS NOT NULL,
    source REGCLASS NOT NULL,
    source_oid OID NOT NULL,
    owner name NOT NULL,
    prompt TEXT NOT NULL,
    columns SMALLINT[] NOT NULL,
    key_columns SMALLINT[] NOT NULL,
    names TEXT[] NOT NULL,
    filter JSONB NOT NULL,
    choices TEXT[],
    max_new_tokens INTEGER,
    policy TEXT DEFAULT 'default' NOT NULL,
    priority INTEGER DEFAULT 0 NOT NULL,
    tags JSONB DEFAULT '{}' NOT NULL,
    round INTEGER DEFAULT 0 NOT NULL,
    task_id INTEGER,
    paused BOOLEAN DEFAULT false NOT NULL,
    trouble TEXT,
    retry_at TIMESTAMP WITH TIME ZONE DEFAULT '-infinity' NOT NULL,
    sweep TEXT,
    swept_to TEXT[],
    page_job BIGINT,
    looked_from BIGINT DEFAULT 0 NOT NULL,
    hints_from BIGINT DEFAULT 0 NOT NULL,
    looked_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT declaration_task_must_exist FOREIGN KEY(task_id) REFERENCES loracomp.task (id) ON DELETE SET NULL,
    CONSTRAINT sweep_must_be_a_known_one CHECK (sweep IN ('skip', 'source', 'answers')),
    CONSTRAINT filter_must_be_a_json_object CHECK (jsonb_typeof(filter) = 'object'),
    CONSTRAINT filter_must_be_nested_at_most_32_deep CHECK (filter = '{}' OR NOT jsonb_path_exists(filter, 'strict $.**{33}')),
    CONSTRAINT tags_must_be_nested_at_most_32_deep CHECK (tags = '{}' OR NOT jsonb_path_exists(tags, 'strict $.**{33}'))
);
CREATE UNIQUE INDEX a_view_shows_one_declaration ON loracomp.declaration (view);
COMMENT ON TABLE loracomp.declaration IS 'Declarations by which a table gets its answers. create_answers makes one.';
COMMENT ON COLUMN loracomp.declaration.id IS 'Internal number; people use the view.';
COMMENT ON COLUMN loracomp.declaration.view IS 'View with the answers; it has the declaration''s name.';
COMMENT ON COLUMN loracomp.declaration.source IS 'Table whose rows are answered.';
COMMENT ON COLUMN loracomp.declaration.source_oid IS 'Its oid; another one after dump and restore, and then columns may have other numbers.';
COMMENT ON COLUMN loracomp.declaration.owner IS 'Owner of the table: its rows are read, and jobs submitted, with this role''s rights.';
COMMENT ON COLUMN loracomp.declaration.prompt IS 'Template of the prompts, in which {column} stands for a column''s value.';
COMMENT ON COLUMN loracomp.declaration.columns IS 'Numbers of the columns that the prompt names, then of those of the filter.';
COMMENT ON COLUMN loracomp.declaration.key_columns IS 'Numbers of the columns of the primary key.';
COMMENT ON COLUMN loracomp.declaration.names IS 'Names of the table, of `columns` and of `key_columns` when the parts were made.';
COMMENT ON COLUMN loracomp.declaration.filter IS 'JSON object: which value as text, or which values, a column has in rows to answer.';
COMMENT ON COLUMN loracomp.declaration.choices IS 'Possible answers; null: text is generated.';
COMMENT ON COLUMN loracomp.declaration.max_new_tokens IS 'Most tokens to generate; 64 by default if there are no choices.';
COMMENT ON COLUMN loracomp.declaration.policy IS 'Policy of the jobs.';
COMMENT ON COLUMN loracomp.declaration.priority IS 'Priority of the jobs of new rows; rows that were there wait below 0.';
COMMENT ON COLUMN loracomp.declaration.tags IS 'Tags of the jobs.';
COMMENT ON COLUMN loracomp.declaration.round IS 'How often all rows were to be asked again.';
COMMENT ON COLUMN loracomp.declaration.task_id IS 'Task whose labelled examples are the corrections.';
COMMENT ON COLUMN loracomp.declaration.paused IS 'Whether nothing is asked until alter_answers says so.';
COMMENT ON COLUMN loracomp.declaration.trouble IS 'Why nothing could be asked; tried again at retry_at.';
COMMENT ON COLUMN loracomp.declaration.retry_at IS 'Before this time nothing is asked.';
COMMENT ON COLUMN loracomp.declaration.sweep IS 'What a look at all rows does: skip, source or answers; null: none is under way.';
COMMENT ON COLUMN loracomp.declaration.swept_to IS 'Key of the last row that this look has seen.';
COMMENT ON COLUMN loracomp.declaration.page_job IS 'Job of the last page; the next page is asked once it is not queued any more.';
COMMENT ON COLUMN loracomp.declaration.looked_from IS 'The last look has seen what transactions before this one wrote.';
COMMENT ON COLUMN loracomp.declaration.hints_from IS 'Hints of transactions before this one are gone.';
COMMENT ON COLUMN loracomp.declaration.looked_at IS 'When the last look at all rows began.';
COMMENT ON CONSTRAINT sweep_must_be_a_known_one ON loracomp.declaration IS 'one of skip, source, answers';
CREATE TABLE loracomp.evaluation (
    name TEXT NOT NULL,
    description TEXT DEFAULT '' NOT NULL,
    split TEXT,
    kind TEXT DEFAULT 'predict' NOT NULL,
    base_model TEXT,
    exclude_own BOOLEAN DEFAULT false NOT NULL,
    seed INTEGER DEFAULT 0 NOT NULL,
    created_by name DEFAULT current_user NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (name),
    CONSTRAINT evaluation_base_model_must_exist FOREIGN KEY(base_model) REFERENCES loracomp.base_model (name) ON UPDATE CASCADE,
    CONSTRAINT evaluation_name_must_not_be_blank CHECK (NOT loracomp.is_blank(name)),
    CONSTRAINT evaluation_name_must_be_at_most_300_bytes CHECK (octet_length(name) <= 300),
    CONSTRAINT evaluated_split_must_be_train_validation_or_test CHECK (split IN ('train', 'validation', 'test')),
    CONSTRAINT evaluation_kind_must_be_predict_or_route CHECK (kind IN ('predict', 'route'))
);
COMMENT ON TABLE loracomp.evaluation IS 'Evaluations: named sets of jobs whose right answers are known.';
COMMENT ON COLUMN loracomp.evaluation.name IS 'Name of the evaluation.';
COMMENT ON COLUMN loracomp.evaluation.description IS 'What the evaluation measures.';
COMMENT ON COLUMN loracomp.evaluation.split IS 'Split whose examples became its jobs; null if its jobs were inserted by hand.';
COMMENT ON COLUMN loracomp.evaluation.kind IS 'predict: jobs are answered. route: only the routing weights are computed.';
COMMENT ON COLUMN loracomp.evaluation.base_model IS 'Base model that answers its jobs; null if its jobs were inserted by hand.';
COMMENT ON COLUMN loracomp.evaluation.exclude_own IS 'Whether a job may not use its own task''s examples and adapter.';
COMMENT ON COLUMN loracomp.evaluation.seed IS 'Seed of the random order in which examples are drawn.';
COMMENT ON COLUMN loracomp.evaluation.created_by IS 'Role that started the evaluation.';
COMMENT ON COLUMN loracomp.evaluation.created_at IS 'When the row was made.';
COMMENT ON CONSTRAINT evaluated_split_must_be_train_validation_or_test ON loracomp.evaluation IS 'one of train, validation, test';
COMMENT ON CONSTRAINT evaluation_kind_must_be_predict_or_route ON loracomp.evaluation IS 'one of predict, route';
CREATE TABLE loracomp.task_evidence (
    task_id INTEGER NOT NULL,
    base_model_id INTEGER NOT NULL,
    choices TEXT[] NOT NULL,
    adapter_ids INTEGER[] NOT NULL,
    log_likelihoods DOUBLE PRECISION[] NOT NULL,
    CONSTRAINT a_task_has_evidence_once_a_base_model PRIMARY KEY (task_id, base_model_id),
    CONSTRAINT evidence_task_must_exist FOREIGN KEY(task_id) REFERENCES loracomp.task (id) ON DELETE CASCADE,
    CONSTRAINT evidence_base_model_must_exist FOREIGN KEY(base_model_id) REFERENCES loracomp.base_model (id) ON DELETE CASCADE,
    CONSTRAINT choices_must_be_a_list_of_at_most_1000 CHECK (choices = '{}' OR (array_ndims(choices) = 1 AND array_lower(choices, 1) = 1 AND cardinality(choices) <= 1000 AND num_nulls(VARIADIC choices) = 0)),
    CONSTRAINT choices_must_be_at_most_1000000_characters_together CHECK (loracomp.texts_length(choices) <= 1000000),
    CONSTRAINT adapter_ids_must_be_a_list_of_at_most_100000 CHECK (adapter_ids = '{}' OR (array_ndims(adapter_ids) = 1 AND array_lower(adapter_ids, 1) = 1 AND cardinality(adapter_ids) <= 100000 AND num_nulls(VARIADIC adapter_ids) = 0)),
    CONSTRAINT log_likelihoods_must_be_a_list_of_at_most_100000 CHECK (log_likelihoods = '{}' OR (array_ndims(log_likelihoods) = 1 AND array_lower(log_likelihoods, 1) = 1 AND cardinality(log_likelihoods) <= 100000 AND num_nulls(VARIADIC log_likelihoods) = 0)),
    CONSTRAINT each_adapter_has_a_likelihood CHECK (cardinality(log_likelihoods) = cardinality(adapter_ids)),
    CONSTRAINT log_likelihoods_must_be_finite CHECK (-1e9 <= ALL (log_likelihoods) AND 0.001 >= ALL (log_likelihoods))
);
COMMENT ON TABLE loracomp.task_evidence IS 'Which adapters explain the labelled examples of a task that has none: routing weighs them by it.';
COMMENT ON COLUMN loracomp.task_evidence.task_id IS 'A task without an adapter.';
COMMENT ON COLUMN loracomp.task_evidence.base_model_id IS 'Base model that the adapters were trained for.';
COMMENT ON COLUMN loracomp.task_evidence.choices IS 'The sorted choices of most of its measured examples, which count.';
COMMENT ON COLUMN loracomp.task_evidence.adapter_ids IS 'Adapters that were measured on all of these examples.';
COMMENT ON COLUMN loracomp.task_evidence.log_likelihoods IS 'Log-likelihood of the examples'' right answers under each adapter in adapter_ids, in nats, after biases of the choices are fitted.';
CREATE TABLE loracomp.example (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    task_id INTEGER NOT NULL,
    split TEXT NOT NULL,
    prompt TEXT,
    choices TEXT[],
    answer TEXT,
    source_ref TEXT,
    content_hash BYTEA NOT NULL,
    hash_version SMALLINT DEFAULT 1 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT example_task_must_exist FOREIGN KEY(task_id) REFERENCES loracomp.task (id) ON DELETE CASCADE,
    CONSTRAINT a_row_stands_in_one_split_of_its_task_once UNIQUE (task_id, content_hash),
    CONSTRAINT example_with_its_task UNIQUE (id, task_id),
    CONSTRAINT split_must_be_train_validation_or_test CHECK (split IN ('train', 'validation', 'test')),
    CONSTRAINT content_hash_must_be_a_sha256 CHECK (octet_length(content_hash) = 32),
    CONSTRAINT an_example_needs_a_prompt_or_a_source_ref CHECK (prompt IS NOT NULL OR source_ref IS NOT NULL),
    CONSTRAINT answer_must_be_one_of_the_choices CHECK (choices IS NULL OR answer IS NULL OR answer = ANY (choices))
);
COMMENT ON TABLE loracomp.example IS 'Examples of tasks, by split. Text may be missing: a library ships only embeddings and references.';
COMMENT ON COLUMN loracomp.example.id IS 'Internal number.';
COMMENT ON COLUMN loracomp.example.task_id IS 'Task that the example belongs to.';
COMMENT ON COLUMN loracomp.example.split IS 'train, validation or test. Only train examples are retrieved.';
COMMENT ON COLUMN loracomp.example.prompt IS 'Text shown to the model; null if a library ships the example without its text.';
COMMENT ON COLUMN loracomp.example.choices IS 'Possible answers; null if the answer is free text.';
COMMENT ON COLUMN loracomp.example.answer IS 'The right answer; one of the choices if there are any.';
COMMENT ON COLUMN loracomp.example.source_ref IS 'Where the row came from, such as piqa/train#1532.';
COMMENT ON COLUMN loracomp.example.content_hash IS 'Sha256 of the raw fields as canonical JSON.';
COMMENT ON COLUMN loracomp.example.hash_version IS 'Version of the way in which content_hash is computed.';
COMMENT ON COLUMN loracomp.example.created_at IS 'When the row was made.';
COMMENT ON CONSTRAINT split_must_be_train_validation_or_test ON loracomp.example IS 'one of train, validation, test';
CREATE TABLE loracomp.adapter (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    task_id INTEGER NOT NULL,
    base_model_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    status TEXT DEFAULT 'staged' NOT NULL,
    rank INTEGER NOT NULL,
    alpha DOUBLE PRECISION NOT NULL,
    use_rslora BOOLEAN NOT NULL,
    scaling DOUBLE PRECISION NOT NULL,
    target_modules TEXT[] NOT NULL,
    parameter_count BIGINT NOT NULL,
    byte_count BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    digest TEXT NOT NULL,
    config JSONB NOT NULL,
    training JSONB DEFAULT '{}' NOT NULL,
    created_by name DEFAULT current_user NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    activated_at TIMESTAMP WITH TIME ZONE,
    retired_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT adapter_task_must_exist FOREIGN KEY(task_id) REFERENCES loracomp.task (id),
    CONSTRAINT adapter_base_model_must_exist FOREIGN KEY(base_model_id) REFERENCES loracomp.base_model (id),
    CONSTRAINT adapter_version_is_taken UNIQUE (base_model_id, name, version),
    CONSTRAINT adapter_status_must_be_staged_active_or_retired CHECK (status IN ('staged', 'active', 'retired')),
    CONSTRAINT adapter_name_must_not_be_blank CHECK (NOT loracomp.is_blank(name)),
    CONSTRAINT adapter_version_must_be_positive CHECK (version >= 1),
    CONSTRAINT rank_must_be_positive CHECK (rank BETWEEN 1 AND 65536),
    CONSTRAINT alpha_must_be_positive_and_finite CHECK (alpha BETWEEN 1e-6 AND 1e6),
    CONSTRAINT scaling_must_be_positive_and_finite CHECK (scaling BETWEEN 1e-9 AND 1e6),
    CONSTRAINT an_adapter_must_target_a_module CHECK (cardinality(target_modules) > 0),
    CONSTRAINT config_must_be_nested_at_most_32_deep CHECK (config = '{}' OR NOT jsonb_path_exists(config, 'strict $.**{33}')),
    CONSTRAINT training_must_be_nested_at_most_32_deep CHECK (training = '{}' OR NOT jsonb_path_exists(training, 'strict $.**{33}')),
    CONSTRAINT adapter_sha256_must_be_a_sha256 CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    CONSTRAINT adapter_digest_must_be_a_sha256 CHECK (digest ~ '^[0-9a-f]{64}$')
);
CREATE UNIQUE INDEX one_active_adapter_a_task_and_base_model ON loracomp.adapter (task_id, base_model_id) WHERE status = 'active';
COMMENT ON TABLE loracomp.adapter IS 'LoRA adapters in versions; each is for one task and one base model. The weights are in adapter_part.';
COMMENT ON COLUMN loracomp.adapter.id IS 'Internal number; traces refer to it.';
COMMENT ON COLUMN loracomp.adapter.task_id IS 'Task that the adapter was trained for.';
COMMENT ON COLUMN loracomp.adapter.base_model_id IS 'Base model that the adapter was trained for.';
COMMENT ON COLUMN loracomp.adapter.name IS 'Name of the adapter; by default the task''s.';
COMMENT ON COLUMN loracomp.adapter.version IS 'Version: 1, 2, ... among adapters with this name and base model.';
COMMENT ON COLUMN loracomp.adapter.status IS 'staged: checked, not used yet. active: used for jobs. retired: not used any more, kept for replay.';
COMMENT ON COLUMN loracomp.adapter.rank IS 'Rank r of the factors A [r, d_in] and B [d_out, r].';
COMMENT ON COLUMN loracomp.adapter.alpha IS 'alpha, called lora_alpha in PEFT; it decides the scaling.';
COMMENT ON COLUMN loracomp.adapter.use_rslora IS 'Whether scaling is alpha/sqrt(r) instead of alpha/r.';
COMMENT ON COLUMN loracomp.adapter.scaling IS 'Factor that B A is multiplied by: alpha/r, or alpha/sqrt(r).';
COMMENT ON COLUMN loracomp.adapter.target_modules IS 'Full names of the base model''s modules that it changes.';
COMMENT ON COLUMN loracomp.adapter.parameter_count IS 'Number of parameters: elements of all its factors.';
COMMENT ON COLUMN loracomp.adapter.byte_count IS 'Size of its safetensors file in bytes.';
COMMENT ON COLUMN loracomp.adapter.sha256 IS 'Sha256 of its safetensors file; checked on every load.';
COMMENT ON COLUMN loracomp.adapter.digest IS 'Sha256 of sha256 and each module''s scaling; equal if two adapters compute the same.';
COMMENT ON COLUMN loracomp.adapter.config IS 'Its adapter_config.json, for export.';
COMMENT ON COLUMN loracomp.adapter.training IS 'How it was trained: data digest, hyper-parameters, rows, seed; {} if unknown.';
COMMENT ON COLUMN loracomp.adapter.created_by IS 'Who registered it.';
COMMENT ON COLUMN loracomp.adapter.created_at IS 'When the row was made.';
COMMENT ON COLUMN loracomp.adapter.activated_at IS 'When the adapter last became active.';
COMMENT ON COLUMN loracomp.adapter.retired_at IS 'When the adapter was retired.';
COMMENT ON CONSTRAINT adapter_status_must_be_staged_active_or_retired ON loracomp.adapter IS 'one of staged, active, retired';
CREATE TABLE loracomp.answer_row (
    declaration_id INTEGER NOT NULL,
    key TEXT[] NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    job_id BIGINT,
    prompt_hash BYTEA NOT NULL,
    answer TEXT,
    confidence DOUBLE PRECISION,
    answered_by TEXT,
    answered_at TIMESTAMP WITH TIME ZONE,
    changed_in BIGINT DEFAULT 0 NOT NULL,
    correct TEXT,
    first_answer TEXT,
    example_id BIGINT,
    drawn BOOLEAN DEFAULT false NOT NULL,
    visitor TEXT,
    offered_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT a_row_has_one_answer PRIMARY KEY (declaration_id, key),
    CONSTRAINT an_answer_belongs_to_a_declaration FOREIGN KEY(declaration_id) REFERENCES loracomp.declaration (id) ON DELETE CASCADE,
    CONSTRAINT answer_status_must_be_a_known_one CHECK (status IN ('asked', 'answered', 'refused', 'failed'))
)
 WITH (fillfactor = 80);
CREATE INDEX answer_row_drawn ON loracomp.answer_row (declaration_id, visitor) WHERE drawn;
CREATE INDEX answer_row_example ON loracomp.answer_row (example_id) WHERE example_id IS NOT NULL;
CREATE INDEX answer_row_job ON loracomp.answer_row (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX answer_row_progress ON loracomp.answer_row (declaration_id, status, answered_at);
CREATE INDEX answer_row_feed ON loracomp.answer_row (declaration_id, changed_in);
COMMENT ON TABLE loracomp.answer_row IS 'The answer to each row of a declaration''s table. The declaration''s view shows it.';
COMMENT ON COLUMN loracomp.answer_row.declaration_id IS 'The declaration.';
COMMENT ON COLUMN loracomp.answer_row.key IS 'Primary key of the row, as texts.';
COMMENT ON COLUMN loracomp.answer_row.status IS 'asked, answered, refused or failed.';
COMMENT ON COLUMN loracomp.answer_row.reason IS 'Why it is refused, or failed.';
COMMENT ON COLUMN loracomp.answer_row.job_id IS 'Job that asks, or has asked; it may have been purged.';
COMMENT ON COLUMN loracomp.answer_row.prompt_hash IS 'Sha256 of the newest prompt, with choices and round.';
COMMENT ON COLUMN loracomp.answer_row.answer IS 'The answer; while another is asked, the old one.';
COMMENT ON COLUMN loracomp.answer_row.confidence IS 'Probability of the best choice.';
COMMENT ON COLUMN loracomp.answer_row.answered_by IS 'What answered: base, mix, or how many corrections.';
COMMENT ON COLUMN loracomp.answer_row.answered_at IS 'When it was answered.';
COMMENT ON COLUMN loracomp.answer_row.changed_in IS 'Transaction that last wrote the outcome; for answers_since.';
COMMENT ON COLUMN loracomp.answer_row.correct IS 'The right answer, as a person says.';
COMMENT ON COLUMN loracomp.answer_row.first_answer IS 'The answer that stood there then.';
COMMENT ON COLUMN loracomp.answer_row.example_id IS 'Example of the declaration''s task that the correction made.';
COMMENT ON COLUMN loracomp.answer_row.drawn IS 'Whether rows_to_correct drew the row at random.';
COMMENT ON COLUMN loracomp.answer_row.visitor IS 'Who corrects the row: a name that rows_to_correct was given.';
COMMENT ON COLUMN loracomp.answer_row.offered_at IS 'When it was given; for ten minutes nobody else gets it.';
COMMENT ON CONSTRAINT answer_status_must_be_a_known_one ON loracomp.answer_row IS 'one of asked, answered, refused, failed';
CREATE TABLE loracomp.measurement (
    example_id BIGINT NOT NULL,
    base_model_id INTEGER NOT NULL,
    task_id INTEGER NOT NULL,
    choice_normalization TEXT NOT NULL,
    base_score DOUBLE PRECISION NOT NULL,
    base_is_right BOOLEAN,
    adapter_ids INTEGER[] NOT NULL,
    gains REAL[] NOT NULL,
    are_right BOOLEAN[] NOT NULL,
    choice_scores JSONB,
    worker TEXT,
    measured_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    chat_template BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT an_example_has_one_measurement_a_base_model PRIMARY KEY (example_id, base_model_id),
    CONSTRAINT measurement_belongs_to_an_example_of_its_task FOREIGN KEY(example_id, task_id) REFERENCES loracomp.example (id, task_id) ON DELETE CASCADE,
    CONSTRAINT measured_base_model_must_exist FOREIGN KEY(base_model_id) REFERENCES loracomp.base_model (id) ON DELETE CASCADE,
    CONSTRAINT measured_normalization_must_be_none_characters_or_tokens CHECK (choice_normalization IN ('none', 'characters', 'tokens')),
    CONSTRAINT base_score_must_be_a_log_probability CHECK (base_score BETWEEN -1e9 AND 0.001),
    CONSTRAINT gains_must_be_finite CHECK (-1e9 <= ALL (gains) AND 1e9 >= ALL (gains) AND num_nulls(VARIADIC gains) = 0),
    CONSTRAINT worker_must_be_at_most_300_characters CHECK (char_length(worker) <= 300),
    CONSTRAINT choice_scores_must_be_lists_of_numbers_by_adapter CHECK (jsonb_typeof(choice_scores) = 'object' AND NOT jsonb_path_exists(choice_scores, 'strict $.* ? (@.type() <> "array" || exists (@[*] ? (@.type() <> "number" || @ < -1000000000 || @ > 1000000000)))')),
    CONSTRAINT choice_scores_must_be_nested_at_most_32_deep CHECK (choice_scores = '{}' OR NOT jsonb_path_exists(choice_scores, 'strict $.**{33}')),
    CONSTRAINT each_measured_adapter_has_a_gain CHECK (cardinality(gains) = cardinality(adapter_ids) AND cardinality(are_right) = cardinality(adapter_ids))
);
CREATE INDEX measurement_task ON loracomp.measurement (task_id, base_model_id, example_id);
COMMENT ON TABLE loracomp.measurement IS 'How much adapters improve the answers to examples: one row for each example and base model.';
COMMENT ON COLUMN loracomp.measurement.example_id IS 'The example.';
COMMENT ON COLUMN loracomp.measurement.base_model_id IS 'Base model that the adapters were trained for.';
COMMENT ON COLUMN loracomp.measurement.task_id IS 'Task of the example; a copy, because routing looks for tasks with measured examples.';
COMMENT ON COLUMN loracomp.measurement.choice_normalization IS 'What the choices'' log-likelihoods were divided by before their softmax: none, characters, tokens.';
COMMENT ON COLUMN loracomp.measurement.base_score IS 'Log-probability of the right answer under the base model alone, in nats: among the choices, or per token of a free text.';
COMMENT ON COLUMN loracomp.measurement.base_is_right IS 'Whether the base model alone chooses the right answer; null without choices.';
COMMENT ON COLUMN loracomp.measurement.adapter_ids IS 'Adapters that were measured.';
COMMENT ON COLUMN loracomp.measurement.gains IS 'Gain of each adapter in adapter_ids: log-probability of the right answer, minus base_score.';
COMMENT ON COLUMN loracomp.measurement.are_right IS 'Whether each adapter in adapter_ids chooses the right answer; null without choices.';
COMMENT ON COLUMN loracomp.measurement.choice_scores IS 'Normalised log-likelihoods of the example''s choices, an array for each adapter''s id; null without choices, or if a library brought the measurement.';
COMMENT ON COLUMN loracomp.measurement.worker IS 'Worker that made the newest measurement.';
COMMENT ON COLUMN loracomp.measurement.measured_at IS 'Time of the newest measurement.';
COMMENT ON COLUMN loracomp.measurement.chat_template IS 'Whether the prompt stood in the base model''s chat template.';
COMMENT ON CONSTRAINT measured_normalization_must_be_none_characters_or_tokens ON loracomp.measurement IS 'one of none, characters, tokens';
CREATE TABLE loracomp.example_embedding (
    example_id BIGINT NOT NULL,
    task_id INTEGER NOT NULL,
    embedding public.HALFVEC(832) NOT NULL,
    CONSTRAINT an_example_has_one_embedding PRIMARY KEY (example_id),
    CONSTRAINT embedding_belongs_to_an_example_of_its_task FOREIGN KEY(example_id, task_id) REFERENCES loracomp.example (id, task_id) ON DELETE CASCADE
);
CREATE INDEX example_embedding_task ON loracomp.example_embedding (task_id);
CREATE INDEX example_embedding_hnsw ON loracomp.example_embedding USING hnsw (embedding public.halfvec_cosine_ops) WITH (ef_construction = 400);
COMMENT ON TABLE loracomp.example_embedding IS 'Embeddings of train examples, in a table of their own with short rows, because retrieval scans it.';
COMMENT ON COLUMN loracomp.example_embedding.example_id IS 'The example.';
COMMENT ON COLUMN loracomp.example_embedding.task_id IS 'Task of the example; a copy, so that retrieval reads one table only.';
COMMENT ON COLUMN loracomp.example_embedding.embedding IS 'The example as a unit vector in half precision, in the encoder''s input format.';
CREATE TABLE loracomp.adapter_part (
    adapter_id INTEGER NOT NULL,
    part INTEGER NOT NULL,
    bytes BYTEA NOT NULL,
    CONSTRAINT adapter_part_stands_once PRIMARY KEY (adapter_id, part),
    CONSTRAINT weights_belong_to_an_adapter FOREIGN KEY(adapter_id) REFERENCES loracomp.adapter (id) ON DELETE CASCADE,
    CONSTRAINT part_must_not_be_negative CHECK (part >= 0),
    CONSTRAINT a_part_holds_at_most_8_mb CHECK (octet_length(bytes) BETWEEN 1 AND 8388608)
);
COMMENT ON TABLE loracomp.adapter_part IS 'The adapters'' safetensors files, cut into parts of 8 MB.';
COMMENT ON COLUMN loracomp.adapter_part.adapter_id IS 'The adapter.';
COMMENT ON COLUMN loracomp.adapter_part.part IS 'Number of the part, from 0; each part has 8 MB, the last may be shorter.';
COMMENT ON COLUMN loracomp.adapter_part.bytes IS 'The bytes of this part of the safetensors file.';
CREATE TABLE loracomp.job (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    status TEXT DEFAULT 'queued' NOT NULL,
    kind TEXT DEFAULT 'predict' NOT NULL,
    prompt TEXT NOT NULL,
    choices TEXT[],
    max_new_tokens INTEGER,
    stop TEXT[] DEFAULT '{}' NOT NULL,
    policy TEXT DEFAULT 'default' NOT NULL,
    base_model TEXT,
    priority INTEGER DEFAULT 0 NOT NULL,
    run_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    idempotency_key TEXT,
    tags JSONB DEFAULT '{}' NOT NULL,
    exclude_tasks TEXT[] DEFAULT '{}' NOT NULL,
    tasks TEXT[],
    weights DOUBLE PRECISION[],
    max_attempts INTEGER DEFAULT 3 NOT NULL,
    timeout_s INTEGER DEFAULT 600 NOT NULL,
    task TEXT,
    expected TEXT,
    evaluation TEXT,
    example_id BIGINT,
    submitted_by name DEFAULT current_user NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    place BIGINT,
    background BOOLEAN DEFAULT false NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    expired_leases INTEGER DEFAULT 0 NOT NULL,
    worker TEXT,
    lease_token BIGINT,
    claimed_at TIMESTAMP WITH TIME ZONE,
    lease_expires_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    error_code TEXT,
    error TEXT,
    temperature DOUBLE PRECISION DEFAULT 0 NOT NULL,
    top_p DOUBLE PRECISION DEFAULT 1 NOT NULL,
    seed BIGINT,
    scheduled BOOLEAN DEFAULT false NOT NULL,
    is_correct BOOLEAN,
    adapter_ids INTEGER[],
    chat_template BOOLEAN,
    system_text TEXT,
    PRIMARY KEY (id),
    CONSTRAINT policy_must_exist FOREIGN KEY(policy) REFERENCES loracomp.policy (name) ON UPDATE CASCADE,
    CONSTRAINT base_model_must_exist FOREIGN KEY(base_model) REFERENCES loracomp.base_model (name) ON UPDATE CASCADE,
    CONSTRAINT task_must_exist FOREIGN KEY(task) REFERENCES loracomp.task (name) ON DELETE SET NULL ON UPDATE CASCADE,
    CONSTRAINT evaluation_must_exist FOREIGN KEY(evaluation) REFERENCES loracomp.evaluation (name) ON UPDATE CASCADE,
    CONSTRAINT idempotency_key_was_used_before UNIQUE (submitted_by, idempotency_key),
    CONSTRAINT status_must_be_a_known_one CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT kind_must_be_predict_route_or_measure CHECK (kind IN ('predict', 'route', 'measure')),
    CONSTRAINT prompt_must_not_be_blank CHECK (NOT loracomp.is_blank(prompt)),
    CONSTRAINT prompt_must_be_at_most_1000000_characters CHECK (char_length(prompt) <= 1000000),
    CONSTRAINT choices_must_be_a_list_of_2_to_1000 CHECK (choices IS NULL OR (array_ndims(choices) = 1 AND array_lower(choices, 1) = 1 AND cardinality(choices) BETWEEN 2 AND 1000)),
    CONSTRAINT choices_must_not_be_null_or_blank CHECK (choices IS NULL OR loracomp.texts_are_not_blank(choices)),
    CONSTRAINT choices_must_be_distinct CHECK (choices IS NULL OR loracomp.texts_are_distinct(choices)),
    CONSTRAINT choices_must_be_at_most_1000000_characters_together CHECK (choices IS NULL OR loracomp.texts_length(choices) <= 1000000),
    CONSTRAINT stop_must_be_at_most_10000_characters_together CHECK (stop = '{}' OR loracomp.texts_length(stop) <= 10000),
    CONSTRAINT exclude_tasks_must_be_at_most_100000_characters_together CHECK (exclude_tasks = '{}' OR loracomp.texts_length(exclude_tasks) <= 100000),
    CONSTRAINT tags_must_be_at_most_100000_characters CHECK (tags = '{}' OR char_length(tags::text) <= 100000),
    CONSTRAINT give_choices_or_max_new_tokens_not_both CHECK (choices IS NULL OR max_new_tokens IS NULL),
    CONSTRAINT max_new_tokens_must_be_between_1_and_100000 CHECK (max_new_tokens BETWEEN 1 AND 100000),
    CONSTRAINT stop_must_hold_at_most_16_texts_none_empty CHECK (stop = '{}' OR (array_ndims(stop) = 1 AND num_nulls(VARIADIC stop) = 0 AND '' <> ALL (stop) AND cardinality(stop) <= 16)),
    CONSTRAINT temperature_must_be_between_0_and_100 CHECK (temperature BETWEEN 0 AND 100),
    CONSTRAINT top_p_must_be_between_0_0001_and_1 CHECK (top_p BETWEEN 0.0001 AND 1),
    CONSTRAINT seed_must_not_be_negative CHECK (seed >= 0),
    CONSTRAINT choices_are_scored_not_drawn_leave_out_temperature_top_p_seed CHECK (choices IS NULL OR (temperature = 0 AND top_p = 1 AND seed IS NULL)),
    CONSTRAINT choices_are_scored_not_generated_leave_out_stop CHECK (choices IS NULL OR stop = '{}'),
    CONSTRAINT priority_must_be_between_minus_1000_and_1000 CHECK (priority BETWEEN -1000 AND 1000),
    CONSTRAINT idempotency_key_must_be_1_to_500_characters CHECK (idempotency_key <> '' AND char_length(idempotency_key) <= 500),
    CONSTRAINT tags_must_be_a_json_object CHECK (jsonb_typeof(tags) = 'object'),
    CONSTRAINT tags_must_be_nested_at_most_32_deep CHECK (tags = '{}' OR NOT jsonb_path_exists(tags, 'strict $.**{33}')),
    CONSTRAINT exclude_tasks_must_be_a_list CHECK (array_ndims(exclude_tasks) = 1),
    CONSTRAINT exclude_tasks_must_not_hold_null CHECK (num_nulls(VARIADIC exclude_tasks) = 0),
    CONSTRAINT tasks_must_be_a_list_of_1_to_64 CHECK (tasks IS NULL OR (array_ndims(tasks) = 1 AND cardinality(tasks) BETWEEN 1 AND 64)),
    CONSTRAINT tasks_must_be_distinct_and_none_null CHECK (tasks IS NULL OR (num_nulls(VARIADIC tasks) = 0 AND loracomp.texts_are_distinct(tasks))),
    CONSTRAINT tasks_must_be_at_most_100000_characters_together CHECK (tasks IS NULL OR loracomp.texts_length(tasks) <= 100000),
    CONSTRAINT weights_must_be_one_for_each_of_the_tasks CHECK (weights IS NULL OR (tasks IS NOT NULL AND array_ndims(weights) = 1 AND cardinality(weights) = cardinality(tasks))),
    CONSTRAINT weights_must_be_between_0_000001_and_1 CHECK (weights IS NULL OR (num_nulls(VARIADIC weights) = 0 AND 0.000001 <= ALL (weights) AND 1 >= ALL (weights))),
    CONSTRAINT system_text_must_not_be_blank CHECK (NOT loracomp.is_blank(system_text)),
    CONSTRAINT system_text_must_be_at_most_100000_characters CHECK (char_length(system_text) <= 100000),
    CONSTRAINT a_system_text_needs_the_chat_template CHECK (system_text IS NULL OR chat_template IS NOT FALSE),
    CONSTRAINT attempts_must_not_be_negative CHECK (attempts >= 0),
    CONSTRAINT expired_leases_must_not_be_negative CHECK (expired_leases >= 0),
    CONSTRAINT max_attempts_must_be_between_1_and_100 CHECK (max_attempts BETWEEN 1 AND 100),
    CONSTRAINT timeout_s_must_be_between_1_and_86400 CHECK (timeout_s BETWEEN 1 AND 86400),
    CONSTRAINT run_at_must_be_finite CHECK (isfinite(run_at)),
    CONSTRAINT worker_must_be_at_most_300_characters CHECK (char_length(worker) <= 300),
    CONSTRAINT error_code_must_be_at_most_100_characters CHECK (char_length(error_code) <= 100),
    CONSTRAINT error_must_be_at_most_10000_characters CHECK (char_length(error) <= 10000),
    CONSTRAINT expected_must_be_one_of_the_choices CHECK (expected IS NULL OR choices IS NULL OR expected = ANY (choices)),
    CONSTRAINT example_id_is_for_evaluations_and_measuring CHECK (example_id IS NULL OR evaluation IS NOT NULL OR kind = 'measure'),
    CONSTRAINT jobs_of_kind_measure_come_from_measure_task CHECK (CASE kind WHEN 'measure' THEN num_nulls(example_id, expected, adapter_ids) = 0 AND evaluation IS NULL ELSE adapter_ids IS NULL END),
    CONSTRAINT a_running_job_and_only_it_has_a_lease CHECK ((status = 'running') = (num_nulls(lease_token, lease_expires_at, claimed_at) = 0)),
    CONSTRAINT a_job_that_is_due_has_a_place CHECK (status <> 'queued' OR scheduled OR place IS NOT NULL),
    CONSTRAINT an_ended_job_and_only_it_has_finished_at CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
)
 WITH (fillfactor = 80, autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_scale_factor = 0.005, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX job_to_measure ON loracomp.job (example_id) WHERE kind = 'measure';
CREATE INDEX job_evaluation ON loracomp.job (evaluation) WHERE evaluation IS NOT NULL;
CREATE INDEX job_scheduled ON loracomp.job (scheduled, run_at) WHERE status = 'queued' AND (scheduled OR background);
CREATE INDEX job_leases ON loracomp.job (lease_expires_at) WHERE status = 'running';
CREATE INDEX job_queue ON loracomp.job (base_model, background, place, id) WHERE status = 'queued' AND NOT scheduled;
CREATE INDEX job_suspects ON loracomp.job (base_model, background, expired_leases, place, id) WHERE status = 'queued' AND NOT scheduled AND expired_leases > 0;
CREATE INDEX job_day ON loracomp.job USING brin (((finished_at AT TIME ZONE 'UTC')::date));
CREATE INDEX job_finished ON loracomp.job (finished_at) WHERE finished_at IS NOT NULL;
CREATE UNIQUE INDEX an_evaluation_asks_an_example_once_a_policy ON loracomp.job (evaluation, example_id, policy) WHERE example_id IS NOT NULL;
COMMENT ON TABLE loracomp.job IS 'Jobs: requests for predictions. INSERT a prompt here; read the answer in loracomp.job_result.';
COMMENT ON COLUMN loracomp.job.id IS 'The job''s number.';
COMMENT ON COLUMN loracomp.job.status IS 'queued, running, succeeded, failed or cancelled. Only SQL functions change it.';
COMMENT ON COLUMN loracomp.job.kind IS 'predict: answer the prompt. route: only compute routing weights. measure: score adapters on an example.';
COMMENT ON COLUMN loracomp.job.prompt IS 'Text for the model to answer; the only column that an INSERT must name.';
COMMENT ON COLUMN loracomp.job.choices IS 'Possible answers, one of which is chosen; null: the answer is generated text.';
COMMENT ON COLUMN loracomp.job.max_new_tokens IS 'Most tokens to generate; 64 by default if there are no choices.';
COMMENT ON COLUMN loracomp.job.stop IS 'Texts at which generation ends; they are not part of the answer.';
COMMENT ON COLUMN loracomp.job.policy IS 'Name of the policy: the settings of routing and merging.';
COMMENT ON COLUMN loracomp.job.base_model IS 'Base model to use; by default the default base model.';
COMMENT ON COLUMN loracomp.job.priority IS 'Priority from -1000 to 1000; each step is worth 1,000 places. Below 0: in the background.';
COMMENT ON COLUMN loracomp.job.run_at IS 'Time before which the job must not start.';
COMMENT ON COLUMN loracomp.job.idempotency_key IS 'Key chosen by the submitter. A second INSERT with it is refused; submit_job returns the first job instead.';
COMMENT ON COLUMN loracomp.job.tags IS 'JSON object of the submitter''s, to filter jobs by; not shown to the model.';
COMMENT ON COLUMN loracomp.job.exclude_tasks IS 'Tasks whose examples and adapters must not be used.';
COMMENT ON COLUMN loracomp.job.tasks IS 'Tasks whose adapters may be used; null: all tasks that the submitter may use.';
COMMENT ON COLUMN loracomp.job.weights IS 'Weights of the adapters of `tasks`, in that order, used instead of retrieval; null: retrieval decides.';
COMMENT ON COLUMN loracomp.job.max_attempts IS 'Number of attempts after which the job ends as failed.';
COMMENT ON COLUMN loracomp.job.timeout_s IS 'Most seconds that one attempt may take.';
COMMENT ON COLUMN loracomp.job.task IS 'Task of the example that the job was made from; only for evaluations and kind measure.';
COMMENT ON COLUMN loracomp.job.expected IS 'The right answer; only for evaluations and kind measure.';
COMMENT ON COLUMN loracomp.job.evaluation IS 'Name of the evaluation that the job belongs to; null for other jobs.';
COMMENT ON COLUMN loracomp.job.example_id IS 'Example that the job was made from; only for evaluations and kind measure.';
COMMENT ON COLUMN loracomp.job.submitted_by IS 'Role that inserted the job; it decides which tasks the job may use.';
COMMENT ON COLUMN loracomp.job.created_at IS 'When the row was made.';
COMMENT ON COLUMN loracomp.job.place IS 'Place in the queue: jobs are claimed in this order, in which submitters take turns. A trigger sets it; null: run_at has not come yet.';
COMMENT ON COLUMN loracomp.job.background IS 'Whether the job is claimed only if no other waits: evaluations, kind measure, and priorities below 0. A trigger sets it.';
COMMENT ON COLUMN loracomp.job.attempts IS 'Number of times that the job was claimed, without claims that were given back.';
COMMENT ON COLUMN loracomp.job.expired_leases IS 'Number of leases of the job that expired. The first gave its attempt back; from then on the job is claimed alone, and each counts.';
COMMENT ON COLUMN loracomp.job.worker IS 'Worker that holds the job, or held it last.';
COMMENT ON COLUMN loracomp.job.lease_token IS 'Fence token of the current lease; a worker''s later writes must show it.';
COMMENT ON COLUMN loracomp.job.claimed_at IS 'When the current attempt began.';
COMMENT ON COLUMN loracomp.job.lease_expires_at IS 'Time at which the lease expires unless it is renewed; at most claimed_at + 2 * timeout_s.';
COMMENT ON COLUMN loracomp.job.finished_at IS 'Time at which the job succeeded, failed or was cancelled.';
COMMENT ON COLUMN loracomp.job.error_code IS 'Short name of the last error.';
COMMENT ON COLUMN loracomp.job.error IS 'Message of the last error.';
COMMENT ON COLUMN loracomp.job.temperature IS 'For generated text. 0: the most likely token each time; above 0: sample from softmax(logits / temperature).';
COMMENT ON COLUMN loracomp.job.top_p IS 'For generated text: sample from the fewest tokens whose probabilities add up to this (nucleus sampling).';
COMMENT ON COLUMN loracomp.job.seed IS 'Seed of sampled text; null: the job''s number is the seed.';
COMMENT ON COLUMN loracomp.job.scheduled IS 'Whether the job waits for run_at. A trigger sets it; the first claim after run_at clears it.';
COMMENT ON COLUMN loracomp.job.is_correct IS 'Whether the answer equals `expected`; null if `expected` is null.';
COMMENT ON COLUMN loracomp.job.adapter_ids IS 'Adapters to score on the job''s example; only for kind measure.';
COMMENT ON COLUMN loracomp.job.chat_template IS 'Whether the prompt stands in the base model''s chat template; null: as the policy says, or with a system text.';
COMMENT ON COLUMN loracomp.job.system_text IS 'What the chat template puts before the prompt as the system''s message.';
COMMENT ON CONSTRAINT status_must_be_a_known_one ON loracomp.job IS 'one of queued, running, succeeded, failed, cancelled';
COMMENT ON CONSTRAINT kind_must_be_predict_route_or_measure ON loracomp.job IS 'one of predict, route, measure';
ALTER TABLE loracomp.answer_hint ALTER COLUMN key SET STATISTICS 0;
ALTER TABLE loracomp.prediction ALTER COLUMN output SET STATISTICS 0;
ALTER TABLE loracomp.prediction ALTER COLUMN choice_scores SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN similarities SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN probabilities SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN weights SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN adapter_sha256 SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN adapter_weights SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN composition_digest SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN base_fingerprint SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN expected_gains SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN choice_biases SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN label_scores SET STORAGE EXTERNAL;
ALTER TABLE loracomp.prediction ALTER COLUMN score_weights SET STORAGE EXTERNAL;
ALTER TABLE loracomp.principal_axis ALTER COLUMN axis SET STORAGE PLAIN;
ALTER TABLE loracomp.example ALTER COLUMN prompt SET STATISTICS 0;
ALTER TABLE loracomp.example ALTER COLUMN choices SET STATISTICS 0;
ALTER TABLE loracomp.example ALTER COLUMN answer SET STATISTICS 0;
ALTER TABLE loracomp.adapter_part ALTER COLUMN bytes SET STORAGE EXTERNAL;
ALTER TABLE loracomp.answer_row ALTER COLUMN key SET STATISTICS 0;
ALTER TABLE loracomp.answer_row ALTER COLUMN reason SET STATISTICS 0;
ALTER TABLE loracomp.answer_row ALTER COLUMN prompt_hash SET STATISTICS 0;
ALTER TABLE loracomp.answer_row ALTER COLUMN answer SET STATISTICS 0;
ALTER TABLE loracomp.answer_row ALTER COLUMN correct SET STATISTICS 0;
ALTER TABLE loracomp.answer_row ALTER COLUMN first_answer SET STATISTICS 0;
ALTER TABLE loracomp.example_embedding ALTER COLUMN embedding SET STORAGE PLAIN;
ALTER TABLE loracomp.job ALTER COLUMN prompt SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN choices SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN stop SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN idempotency_key SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN tags SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN exclude_tasks SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN tasks SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN weights SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN task SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN expected SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN lease_token SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN error SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN adapter_ids SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN chat_template SET STATISTICS 0;
ALTER TABLE loracomp.job ALTER COLUMN system_text SET STATISTICS 0;
-- ----


-- No rollback undoes a sequence, so these count.
COMMENT ON SEQUENCE loracomp.rescued_jobs IS 'Counter: jobs taken back after their lease ran out.';
COMMENT ON SEQUENCE loracomp.refused_inserts IS
'Counter: INSERT statements refused because a limit of the queue was reached.';
COMMENT ON SEQUENCE loracomp.late_answer_seen IS 'The last row of late_answer that a claim has looked at.';
-- A sequence's first nextval gives its start. From now on each counts one.
SELECT nextval('loracomp.rescued_jobs'), nextval('loracomp.refused_inserts');

-- Attributes are columns of loracomp.prediction, by name and type.
CREATE TYPE loracomp.route_trace AS (
    example_ids bigint[],
    example_tasks text[],
    similarities double precision[],
    tasks text[],
    probabilities double precision[],
    weights double precision[],
    composed_tasks text[],
    adapter_ids integer[],
    adapter_sha256 text[],
    adapter_weights double precision[],
    policy_settings jsonb,
    fallback text,
    eligible_task_count integer,
    expected_gains double precision[],
    chat_template boolean,
    calibration_examples bigint[]
);
COMMENT ON TYPE loracomp.route_trace IS
'What routing decided for a job: columns of loracomp.prediction, which holds it. Of workers'' own use.';

-- What a worker hands back for each job; the attributes are columns of loracomp.prediction, or of loracomp.measurement.
CREATE TYPE loracomp.answer AS (
    job_id bigint,
    lease_token bigint,
    output text,
    choice_index integer,
    choice_scores double precision[],
    choice_biases double precision[],
    label_scores double precision[],
    score_weights double precision[],
    prompt_tokens integer,
    output_tokens integer,
    finish_reason text,
    composition_digest text,
    batch_size integer,
    timings jsonb
);
COMMENT ON TYPE loracomp.answer IS 'What a worker answered to a job, with the token of its lease. For record_predictions.';
CREATE TYPE loracomp.measured AS (
    job_id bigint,
    lease_token bigint,
    choice_normalization text,
    base_score double precision,
    base_is_right boolean,
    chat_template boolean,
    adapter_ids integer[],
    gains real[],
    are_right boolean[],
    choice_scores jsonb
);
COMMENT ON TYPE loracomp.measured IS
'What a worker measured for a job, with the token of its lease; the arrays have an element for each adapter. For record_measurements.';

-- How many predictions each router has: without it reports are planned for a half per cent of them.
CREATE STATISTICS loracomp.prediction_router ON (policy_settings ->> 'router') FROM loracomp.prediction;

-- What jobs use unless they say otherwise; one policy a strategy; and the controls of an honest evaluation.
INSERT INTO loracomp.policy (name, description, router, weighting, strategy, max_adapters, k, contrast) VALUES
('default', 'Similar examples choose the adapters; their exact weighted sum (cat).', 'retrieval', 'similarity', 'cat', 8, 30, 0),
('cat', 'As default, merged by Concatenation: exactly the weighted sum.', 'retrieval', 'similarity', 'cat', 8, 30, 0),
('linear', 'As default, merged by Linear, as the paper does.', 'retrieval', 'similarity', 'linear', 8, 30, 0),
('ties', 'As default, merged by TIES.', 'retrieval', 'similarity', 'ties', 8, 30, 0),
('magnitude_prune', 'As default, merged by Magnitude Prune.', 'retrieval', 'similarity', 'magnitude_prune', 8, 30, 0),
('dare_linear', 'As default, merged by DARE and Linear.', 'retrieval', 'similarity', 'dare_linear', 8, 30, 0),
('dare_ties', 'As default, merged by DARE and TIES.', 'retrieval', 'similarity', 'dare_ties', 8, 30, 0),
('nearest', 'The adapter of the most probable task alone.', 'retrieval', 'similarity', 'linear', 1, 30, 0),
('contrast', 'As default, minus 0.3 times the base model''s score of each choice.', 'retrieval', 'similarity', 'cat', 8, 30, 0.3),
('nearest_contrast', 'As nearest, minus 0.3 times the base model''s score of each choice.', 'retrieval', 'similarity', 'cat', 1, 30, 0.3),
('uniform', 'Control: the nucleus with equal weights.', 'retrieval', 'uniform', 'cat', 8, 30, 0),
('base', 'Control: the base model alone.', 'base', 'similarity', 'linear', 8, 30, 0),
('own_task', 'Control: the adapter of the job''s own task alone.', 'own_task', 'similarity', 'linear', 1, 30, 0),
('own_task_contrast', 'Control: as own_task, minus 0.3 times the base model''s score of each choice.', 'own_task', 'similarity', 'cat', 8, 30, 0.3),
('random', 'Control: random adapters with the weights that retrieval gave.', 'random', 'similarity', 'cat', 8, 30, 0),
('random_parameters', 'Control: random numbers of the same norm.', 'random_parameters', 'similarity', 'cat', 8, 30, 0),
('measured', 'Adapters that measured examples expect to help; where none does, the base model.', 'retrieval', 'measured', 'cat', 3, 100, 0);
INSERT INTO loracomp.queue_limit DEFAULT VALUES;

-- Partitions of the first million jobs, and of what belongs to no range; the SQL function add_range makes the others. Two rows of
-- prediction fit on a page of 8 kB. Row security without a policy keeps out all but the owner; who reads through a table is held to
-- its policies alone.
CREATE SCHEMA IF NOT EXISTS loracomp_parts;
COMMENT ON SCHEMA loracomp_parts IS 'Partitions of tables of schema loracomp, counters, and the parts of declarations.';
CREATE TABLE loracomp_parts.prediction_0 (LIKE loracomp.prediction INCLUDING ALL) WITH (toast_tuple_target = 4080);
COMMENT ON TABLE loracomp_parts.prediction_0 IS 'Answers to the jobs from 0 to 999999.';
ALTER TABLE loracomp_parts.prediction_0 ENABLE ROW LEVEL SECURITY;
ALTER TABLE loracomp_parts.prediction_0 ALTER COLUMN output SET STATISTICS 0;
ALTER TABLE loracomp.prediction ATTACH PARTITION loracomp_parts.prediction_0 FOR VALUES FROM (0) TO (1000000);
CREATE TABLE loracomp_parts.prediction_others (LIKE loracomp.prediction INCLUDING ALL) WITH (toast_tuple_target = 4080);
COMMENT ON TABLE loracomp_parts.prediction_others IS 'Answers to jobs that have no other partition; usually none.';
ALTER TABLE loracomp_parts.prediction_others ENABLE ROW LEVEL SECURITY;
ALTER TABLE loracomp_parts.prediction_others ALTER COLUMN output SET STATISTICS 0;
ALTER TABLE loracomp.prediction ATTACH PARTITION loracomp_parts.prediction_others DEFAULT;
CREATE TABLE loracomp_parts.audit_event_others (LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY, PRIMARY KEY (id));
COMMENT ON TABLE loracomp_parts.audit_event_others IS 'Events of the registry.';
ALTER TABLE loracomp_parts.audit_event_others ENABLE ROW LEVEL SECURITY;
ALTER TABLE loracomp.audit_event ATTACH PARTITION loracomp_parts.audit_event_others DEFAULT;
CREATE TABLE loracomp_parts.audit_event_jobs (LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY) PARTITION BY RANGE (entity_id);
COMMENT ON TABLE loracomp_parts.audit_event_jobs IS 'Events of jobs.';
ALTER TABLE loracomp_parts.audit_event_jobs ENABLE ROW LEVEL SECURITY;
ALTER TABLE loracomp.audit_event ATTACH PARTITION loracomp_parts.audit_event_jobs FOR VALUES FROM ('job', 0) TO ('job', MAXVALUE);
CREATE TABLE loracomp_parts.audit_event_0 (LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY, PRIMARY KEY (id));
COMMENT ON TABLE loracomp_parts.audit_event_0 IS 'Events of the jobs from 0 to 999999.';
ALTER TABLE loracomp_parts.audit_event_0 ENABLE ROW LEVEL SECURITY;
ALTER TABLE loracomp_parts.audit_event_jobs ATTACH PARTITION loracomp_parts.audit_event_0 FOR VALUES FROM (0) TO (1000000);
CREATE TABLE loracomp_parts.audit_event_job_others (LIKE loracomp.audit_event INCLUDING ALL EXCLUDING IDENTITY, PRIMARY KEY (id));
COMMENT ON TABLE loracomp_parts.audit_event_job_others IS 'Events of erased jobs, and of jobs that have no other partition.';
ALTER TABLE loracomp_parts.audit_event_job_others ENABLE ROW LEVEL SECURITY;
ALTER TABLE loracomp_parts.audit_event_jobs ATTACH PARTITION loracomp_parts.audit_event_job_others DEFAULT;
