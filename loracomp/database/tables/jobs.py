"""Requests for predictions, and their states."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import INT4RANGE, JSONB

from loracomp.database.tables.columns import (
    NO_STATISTICS,
    TIME,
    RoleName,
    at_most_characters,
    check,
    created_at,
    index,
    metadata,
    one_of,
    optional,
    references,
    required,
    set_storage,
    texts,
)

job = Table(
    "job",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="The job's number."),
    required(
        "status",
        Text,
        "queued, running, succeeded, failed or cancelled. Only SQL functions change it.",
        default="'queued'",
    ),
    required(
        "kind",
        Text,
        "predict: answer the prompt. route: only compute routing weights. measure: score adapters on an example.",
        default="'predict'",
    ),
    required("prompt", Text, "Text for the model to answer; the only column that an INSERT must give."),
    optional("choices", texts(), "Possible answers, one of which is chosen; null: the answer is generated text."),
    optional("descriptions", texts(), "What each of the choices means, in a few words; null: they are not described."),
    optional(
        "text_at",
        INT4RANGE,
        "Which characters of the prompt, counted from 1, are the text that the question is about; null: all of them.",
    ),
    optional("max_new_tokens", Integer, "Maximum number of tokens to generate; 64 by default if there are no choices."),
    required("stop", texts(), "Texts at which generation ends; they are not part of the answer.", default="'{}'"),
    required("policy", Text, "Name of the policy: the settings of routing and merging.", default="'default'"),
    optional("base_model", Text, "Base model to use; by default the database's default base model."),
    required(
        "priority",
        Integer,
        "Priority from -10 to 10; each step is worth 1,000 places. Below 0: in the background.",
        default="0",
    ),
    required("run_at", TIME, "Time before which the job must not start.", default="now()"),
    optional(
        "idempotency_key",
        Text,
        "Key that the submitter chooses. A second INSERT with the same key is refused; submit_job returns the "
        "first job instead.",
    ),
    required(
        "tags", JSONB, "The submitter's own JSON object, for filtering jobs; the model does not see it.", default="'{}'"
    ),
    required("exclude_tasks", texts(), "Tasks whose examples and adapters must not be used.", default="'{}'"),
    optional("tasks", texts(), "Tasks whose adapters may be used; null: all tasks that the submitter may use."),
    optional(
        "weights",
        ARRAY(Double),
        "Weights of the adapters of `tasks`, in that order, used instead of retrieval; null: retrieval decides.",
    ),
    required("max_attempts", Integer, "Number of attempts after which the job ends as failed.", default="3"),
    required("timeout_s", Integer, "Maximum number of seconds of one attempt.", default="600"),
    optional("task", Text, "Task of the example that the job was made from; null for other jobs."),
    optional("expected", Text, "The right answer, if it is known; is_correct then says whether the answer equals it."),
    # Not a foreign key, so that answers to the same example stay comparable after the example is deleted.
    optional("example_id", BigInteger, "Example that the job was made from; null for other jobs."),
    required(
        "submitted_by",
        RoleName(),
        "Role that inserted the job; it decides which tasks the job may use.",
        default="current_user",
    ),
    created_at(),
    optional(
        "place",
        BigInteger,
        "Place in the queue. Jobs are claimed in the order of their places, in which submitters take turns. Null "
        "while the job is scheduled.",
    ),
    required(
        "background",
        Boolean,
        "Whether the job is claimed only if no other job is due: jobs of kind measure and with a priority below "
        "0. The keeper clears it after 1,000 minutes.",
        default="false",
    ),
    required("watched", Boolean, "Whether the table ended_job gets a row when the job has ended.", default="false"),
    required(
        "attempts",
        Integer,
        "Number of times that the job was claimed, not counting claims that were given back.",
        default="0",
    ),
    required(
        "expired_leases",
        Integer,
        "Number of leases of the job that expired. The attempt of the first one was given back. From then on the "
        "job is claimed alone, and each expiry counts as an attempt.",
        default="0",
    ),
    optional("worker", Text, "Worker that holds the job, or was the last to hold it."),
    optional("lease_token", BigInteger, "Fence token of the current lease; a worker's later writes must show it."),
    optional("claimed_at", TIME, "When the current attempt began."),
    optional(
        "lease_expires_at",
        TIME,
        "Time at which the lease expires unless it is renewed; at most claimed_at + 2 * timeout_s.",
    ),
    optional("finished_at", TIME, "Time at which the job succeeded, failed or was cancelled."),
    optional("error_code", Text, "Short name of the last error."),
    optional("error", Text, "Message of the last error."),
    required(
        "temperature",
        Double,
        "For generated text. 0: always take the most likely token; above 0: sample from softmax(logits / temperature).",
        default="0",
    ),
    required(
        "top_p",
        Double,
        "For generated text: sample from the smallest set of tokens whose probabilities add up to this (nucleus "
        "sampling).",
        default="1",
    ),
    optional("seed", BigInteger, "Seed of sampled text; null: the job's number is the seed."),
    required(
        "scheduled",
        Boolean,
        "Whether the job waits for run_at, or for a new place in the queue; the keeper then gives it one.",
        default="false",
    ),
    # In this table and not in prediction, so that reports that count it need not read traces, which are ten times as
    # large.
    optional("is_correct", Boolean, "Whether the answer equals `expected`; null if `expected` is null."),
    # Not a foreign key, so that dropping a declaration, which deletes its task, need not change all its jobs.
    optional(
        "labelled_task",
        Integer,
        "The only task whose labelled rows may calibrate the choices: a declaration's jobs name its own task. Null: "
        "the task of the nearest example.",
    ),
    optional("adapter_ids", ARRAY(Integer), "Adapters to score on the job's example; only for kind measure."),
    optional(
        "chat_template",
        Boolean,
        "Whether the prompt is put into the base model's chat template; null: the policy decides, and a job with "
        "a system text uses it.",
    ),
    optional("system_text", Text, "System message that the chat template puts before the prompt."),
    references("policy_must_exist", "policy", "loracomp.policy.name", onupdate="CASCADE"),
    references("base_model_must_exist", "base_model", "loracomp.base_model.name", onupdate="CASCADE"),
    references("task_must_exist", "task", "loracomp.task.name", onupdate="CASCADE", ondelete="SET NULL"),
    # Idempotency keys are unique for each submitter, so that nobody can find out another submitter's keys.
    UniqueConstraint("submitted_by", "idempotency_key", name="idempotency_key_was_used_before"),
    # Only what changes after the INSERT. The trigger refuse_faulty checks what a submitter writes.
    one_of("status", "queued running succeeded failed cancelled", "status_must_be_a_known_one"),
    check("priority_must_be_between_minus_10_and_10", "priority BETWEEN -10 AND 10"),
    check("attempts_must_not_be_negative", "attempts >= 0"),
    check("expired_leases_must_not_be_negative", "expired_leases >= 0"),
    # These limits exist because a worker writes the texts, and because error_code is part of a key in reports.
    at_most_characters("worker", 300),
    at_most_characters("error_code", 100),
    at_most_characters("error", 10000),
    check(
        "a_running_job_and_only_it_has_a_lease",
        "(status = 'running') = (num_nulls(lease_token, lease_expires_at, claimed_at) = 0)",
    ),
    check("a_job_that_is_due_has_a_place", "status <> 'queued' OR scheduled OR place IS NOT NULL"),
    check(
        "an_ended_job_and_only_it_has_finished_at",
        "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
    ),
    # Due jobs in the order in which they are claimed.
    index("job_queue", "base_model background place id", "status = 'queued' AND NOT scheduled"),
    # Due jobs that must be claimed alone.
    index(
        "job_suspects",
        "base_model background place expired_leases id",
        "status = 'queued' AND NOT scheduled AND expired_leases > 0",
    ),
    # Jobs that change as time passes: scheduled jobs become due, and old jobs leave the background. By submitter,
    # because submitters take turns, and because the number of their waiting jobs may be limited.
    index("job_waiting", "scheduled background submitted_by run_at", "status = 'queued'"),
    index("job_leases", "lease_expires_at", "status = 'running'"),
    index("job_finished", "finished_at", "finished_at IS NOT NULL"),
    # By day too, because queries on views of bi filter by day; BRIN as on prediction.
    Index("job_day", text("((finished_at AT TIME ZONE 'UTC')::date)"), postgresql_using="brin"),
    index("job_to_measure", "example_id", "kind = 'measure'"),
    # For the erasure of an example and for evaluations, which look for all jobs that were made from an example.
    index("job_example", "example_id", "example_id IS NOT NULL"),
    # For the foreign key, so that deleting a task, which dropping a declaration does, need not read all jobs.
    index("job_task", "task", "task IS NOT NULL"),
    comment="Jobs: requests for predictions. INSERT a prompt here; read the answer in loracomp.job_result.",
    # A change of status writes a new version of the row, and the fill factor leaves room for it on the same page.
    # Vacuum runs early and at full speed, however large the table is, because each claim reads past the dead tuples at
    # the head of the queue.
    postgresql_with={
        "fillfactor": "80",
        "autovacuum_analyze_scale_factor": "0.05",
        "autovacuum_vacuum_scale_factor": "0.005",
        "autovacuum_vacuum_threshold": "1000",
        "autovacuum_vacuum_cost_delay": "0",
    },
)
set_storage(
    job,
    NO_STATISTICS,
    "prompt choices descriptions text_at stop idempotency_key tags exclude_tasks tasks weights task expected "
    "lease_token error adapter_ids chat_template system_text",
)
