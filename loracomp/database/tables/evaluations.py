"""Sets of jobs whose right answers are known."""

from sqlalchemy import Boolean, Integer, Table, Text

from loracomp.database.tables.columns import (
    RoleName,
    check,
    created_at,
    metadata,
    one_of,
    optional,
    references,
    required,
    short_name,
)

evaluation = Table(
    "evaluation",
    metadata,
    required("name", Text, "Name of the evaluation.", primary_key=True),
    required("description", Text, "What the evaluation measures.", default="''"),
    optional("split", Text, "Split whose examples became its jobs; null if its jobs were inserted by hand."),
    required(
        "kind", Text, "predict: jobs are answered. route: only the routing weights are computed.", default="'predict'"
    ),
    optional("base_model", Text, "Base model that answers its jobs; null if its jobs were inserted by hand."),
    required("exclude_own", Boolean, "Whether a job may not use its own task's examples and adapter.", default="false"),
    required("seed", Integer, "Seed of the random order in which examples are drawn.", default="0"),
    required("created_by", RoleName(), "Role that started the evaluation.", default="current_user"),
    created_at(),
    references("evaluation_base_model_must_exist", "base_model", "loracomp.base_model.name", onupdate="CASCADE"),
    check("evaluation_name_must_not_be_blank", "NOT loracomp.is_blank(name)"),
    short_name("name", "evaluation_name"),
    one_of("split", "train validation test", "evaluated_split_must_be_train_validation_or_test"),
    one_of("kind", "predict route", "evaluation_kind_must_be_predict_or_route"),
    comment="Evaluations: named sets of jobs whose right answers are known.",
)
