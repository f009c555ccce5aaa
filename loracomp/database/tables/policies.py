"""Settings of routing and merging."""

from sqlalchemy import Double, Integer, Table, Text

from loracomp.database.tables.columns import (
    TIME,
    also,
    between,
    check,
    created_at,
    metadata,
    one_line,
    one_of,
    required,
    short_name,
)

policy = Table(
    "policy",
    metadata,
    required("name", Text, "Name of the policy. Jobs that name none use 'default'.", primary_key=True),
    required("description", Text, "What the policy is for.", default="''"),
    required(
        "router",
        Text,
        "How adapters are chosen: retrieval, or one of the controls own_task and base.",
        default="'retrieval'",
    ),
    required("k", Integer, "Number of nearest examples to retrieve.", default="30"),
    required("routing_temperature", Double, "Temperature of the softmax over similarities.", default="0.1"),
    required(
        "routing_top_p",
        Double,
        "Nucleus sampling: the most probable tasks are kept until their probabilities add up to this.",
        default="0.95",
    ),
    required(
        "max_adapters",
        Integer,
        "Maximum number of adapters in a composition. Does not apply to jobs that labelled examples of their task "
        "calibrate.",
        default="8",
    ),
    required(
        "min_similarity",
        Double,
        "If the nearest example's similarity is lower, no adapter is used and the base model answers alone.",
        default="0.0",
    ),
    required(
        "weighting",
        Text,
        "Weights of the kept tasks. similarity: their probabilities, normalised to 1. uniform: equal. measured: the "
        "adapters' expected gains; adapters that are not expected to help are left out.",
        default="'similarity'",
    ),
    required(
        "strategy",
        Text,
        "How adapters are merged: cat, linear, linear_rescaled, ties or magnitude_prune.",
        default="'cat'",
    ),
    required("density", Double, "Share of the factors' elements that ties and magnitude_prune keep.", default="0.5"),
    required(
        "choice_normalization",
        Text,
        "How a choice's log-likelihood is normalised: none, or divided by its number of characters or tokens.",
        default="'tokens'",
    ),
    created_at(),
    required("updated_at", TIME, "When it was last changed.", default="now()"),
    required(
        "min_share",
        Double,
        "Tasks with a smaller weight are left out, and the others' weights are normalised again; the first task stays. "
        "Does not apply to jobs that labelled examples of their task calibrate.",
        default="0",
    ),
    required(
        "gain_prior",
        Double,
        "Shrinks expected gains towards 0, as if examples with gain 0 and this total weight had been retrieved too.",
        default="0.1",
    ),
    required(
        "gain_margin",
        Double,
        "With weighting measured, an adapter is used only if its expected gain, in nats, is above this. Does not apply "
        "to jobs that labelled examples of their task calibrate.",
        default="0",
    ),
    required(
        "chat_template",
        Text,
        "Which prompts are put into the base model's chat template, if it has one: generation (prompts without "
        "choices), always or never.",
        default="'generation'",
    ),
    required(
        "calibration_rows",
        Integer,
        "With weighting measured, for a task without an adapter: the maximum number of labelled examples, 4 to "
        "1000, that calibrate the choices' scores; 0: no calibration.",
        default="64",
    ),
    required(
        "text_adapters",
        Text,
        "Which adapters jobs without choices may use, unless they name tasks themselves: generating (adapters of "
        "tasks that have train examples without choices) or all.",
        default="'generating'",
    ),
    check("policy_name_must_not_be_blank", "NOT loracomp.is_blank(name)"),
    short_name("name", "policy_name"),
    one_line("name", "policy_name"),
    one_of("router", "retrieval own_task base", "router_must_be_a_known_one"),
    between("k", 1, 200),
    between("routing_temperature", 0.0001, 100),
    between("routing_top_p", 0.0001, 1),
    between("max_adapters", 1, 64),
    between("min_similarity", -1, 1),
    one_of("weighting", "similarity uniform measured", "weighting_must_be_similarity_uniform_or_measured"),
    one_of("strategy", "linear cat ties magnitude_prune linear_rescaled", "strategy_must_be_a_known_one"),
    between("density", 0.0001, 1),
    one_of("choice_normalization", "none characters tokens", "choice_normalization_must_be_none_characters_or_tokens"),
    between("min_share", 0, 1),
    between("gain_prior", 0, 1000),
    between("gain_margin", -1000, 1000),
    one_of("chat_template", "generation always never", "chat_template_must_be_generation_always_or_never"),
    check(
        "calibration_rows_must_be_0_or_between_4_and_1000",
        "calibration_rows = 0 OR calibration_rows BETWEEN 4 AND 1000",
        comment="0, or between 4 and 1000",
    ),
    one_of("text_adapters", "generating all", "text_adapters_must_be_generating_or_all"),
    comment="Named settings of routing and merging. A job names a policy; its trace keeps the settings that were used.",
)
# The default policy, policies with other strategies, and the controls of an honest evaluation.
also(
    """
INSERT INTO loracomp.policy
(name, router, weighting, strategy, max_adapters, k, text_adapters, description) VALUES
('default', 'retrieval', 'similarity', 'cat', 8, 30, 'generating',
    'Chooses adapters by similar examples and merges them by their exact weighted sum (cat).'),
('cat', 'retrieval', 'similarity', 'cat', 8, 30, 'all',
    'As default, merged by Concatenation, which gives exactly the weighted sum; text is written with all adapters.'),
('linear', 'retrieval', 'similarity', 'linear', 8, 30, 'all',
    'As cat, merged by Linear, as the paper does.'),
('ties', 'retrieval', 'similarity', 'ties', 8, 30, 'all',
    'As cat, merged by TIES.'),
('magnitude_prune', 'retrieval', 'similarity', 'magnitude_prune', 8, 30, 'all',
    'As cat, merged by Magnitude Prune.'),
('nearest', 'retrieval', 'similarity', 'linear', 1, 30, 'all',
    'Only the adapter of the most probable task.'),
('uniform', 'retrieval', 'uniform', 'cat', 8, 30, 'all',
    'Control: the nucleus with equal weights.'),
('base', 'base', 'similarity', 'linear', 8, 30, 'all',
    'Control: the base model alone.'),
('own_task', 'own_task', 'similarity', 'linear', 1, 30, 'all',
    'Control: only the adapter of the job''s own task.'),
('measured', 'retrieval', 'measured', 'cat', 3, 100, 'generating',
    'Adapters that are expected to help, judging by measured examples; if there are none, the base model alone.')
"""
)
