"""What a worker records is such that reports can be read: numbers where they cast, finite where they add up."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

CONSTRAINTS = {
    "timings_must_be_numbers_by_step": "jsonb_typeof(timings) = 'object' AND NOT jsonb_path_exists(timings, "
    """'$.* ? (@.type() <> "number" || @ < -1000000000000 || @ > 1000000000000)')""",
    "policy_must_hold_numbers_where_policies_do": "jsonb_typeof(policy) = 'object' AND NOT jsonb_path_exists(policy, "
    """'$ ? (@.k.type() <> "number" || @.k < -1000000 || @.k > 1000000 """
    """|| @.temperature.type() <> "number" || @.temperature < -1000000 || @.temperature > 1000000 """
    """|| @.top_p.type() <> "number" || @.top_p < -1000000 || @.top_p > 1000000 """
    """|| @.max_adapters.type() <> "number" || @.max_adapters < -1000000 || @.max_adapters > 1000000 """
    """|| @.density.type() <> "number" || @.density < -1000000 || @.density > 1000000)')""",
    "similarities_must_be_between_minus_2_and_2": "-2 <= ALL (similarities) AND 2 >= ALL (similarities)",
    "probabilities_must_be_between_0_and_1": "-0.001 <= ALL (probabilities) AND 1.001 >= ALL (probabilities)",
    "weights_must_be_between_0_and_1": "-0.001 <= ALL (weights) AND 1.001 >= ALL (weights)",
    "adapter_weights_must_be_between_0_and_1": "-0.001 <= ALL (adapter_weights) AND 1.001 >= ALL (adapter_weights)",
    "batch_size_must_be_positive": "batch_size BETWEEN 1 AND 1000000",
    "tokens_must_not_be_negative": "prompt_tokens >= 0 AND output_tokens >= 0",
}


def upgrade() -> None:
    for name, condition in CONSTRAINTS.items():
        op.create_check_constraint(name, "prediction", condition, schema="loracomp")


def downgrade() -> None:
    for name in CONSTRAINTS:
        op.drop_constraint(name, "prediction", schema="loracomp")
