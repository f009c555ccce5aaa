"""Reads from a database everything on which answers depend: base model, encoder, examples, adapters, policies, rows."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from loracomp.database.connections import Connection

from .plan import Part, Unit

# Settings that sometimes have no effect on answers. ROUTING has none if the policy's router gives one adapter or none,
# and MERGING has none if only routing weights are measured.
ROUTING = frozenset(
    {"k", "routing_temperature", "routing_top_p", "max_adapters", "min_share", "min_similarity", "weighting"}
)
MERGING = frozenset({"strategy", "density", "choice_normalization"})

BASE_MODEL = "SELECT fingerprint FROM loracomp.find_base_model(NULL)"
ENCODER = "SELECT fingerprint, input_version FROM loracomp.show_encoder()"
INDEX = """
SELECT encode(sha256(string_agg(sha256(convert_to(t.name, 'utf8') || e.content_hash), ''::bytea
    ORDER BY t.name, e.content_hash)), 'hex') AS digest
FROM loracomp.example_embedding AS v
JOIN loracomp.example AS e ON e.id = v.example_id JOIN loracomp.task AS t ON t.id = e.task_id
"""
GAINS = """
SELECT encode(sha256(string_agg(
    sha256(convert_to(row(t.name, e.content_hash, a.sha256, g.gain)::text, 'utf8')), ''::bytea
    ORDER BY t.name, e.content_hash, a.sha256
)), 'hex') AS digest
FROM loracomp.measurement AS m
JOIN loracomp.example AS e ON e.id = m.example_id JOIN loracomp.task AS t ON t.id = m.task_id
CROSS JOIN unnest(m.adapter_ids, m.gains) AS g (id, gain) JOIN loracomp.adapter AS a ON a.id = g.id
"""
ADAPTERS = """
SELECT t.name AS task, a.sha256, coalesce(a.training -> 'tasks_seen', '[]') AS tasks_seen
FROM loracomp.adapter AS a JOIN loracomp.task AS t ON t.id = a.task_id WHERE a.status = 'active'
"""
# All rows have choices. For these a policy uses the chat template only if its setting is 'always', and all adapters.
POLICIES = """
SELECT name, to_jsonb(p) - '{name,description,created_at,updated_at,text_adapters}'::text[]
    - CASE chat_template WHEN 'always' THEN '' ELSE 'chat_template' END
    - CASE weighting WHEN 'measured' THEN '' ELSE 'calibration_rows' END AS settings
FROM loracomp.policy AS p
"""
ROWS = """
SELECT t.name, count(*) AS rows,
    encode(sha256(string_agg(sha256(convert_to(row(e.prompt, e.choices, e.label)::text, 'utf8')), ''::bytea
        ORDER BY x.ordinal)), 'hex') AS digest
FROM loracomp.task AS t CROSS JOIN LATERAL loracomp.draw_examples(t.id, 'validation', 0, FALSE) AS x
JOIN loracomp.example AS e ON e.id = x.example_id
GROUP BY t.name
"""
Rows = dict[str, tuple[int, str]]
"""For each task, the number and the digest of the rows that can be evaluated."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything on which an answer depends, except the code."""

    base_model: str
    retrieval: dict[str, Any]
    """The encoder, and a digest of the examples."""
    adapters: dict[str, str]
    """For each task, the sha256 of its active adapter."""
    tasks_seen: dict[str, list[str]]
    """For each task, the tasks that its adapter was trained on, if known."""
    policies: dict[str, dict[str, Any]]
    rows: Rows
    gains: str | None = None
    """Digest of all measured gains."""

    def units(self, part: Part) -> list[Unit]:
        """The units of a part with this library.

        If the tasks' own adapters may answer, a task without one is evaluated under policies of router base only.
        """
        return [
            Unit(part, task, policy, self.digest(part, task, policy), self.rows[task][0])
            for task in part.tasks
            if task in self.rows
            for policy in part.policies
            if policy in self.policies
            and (not part.own_adapters or task in self.adapters or self.policies[policy]["router"] == "base")
        ]

    def digest(self, part: Part, task: str, policy: str) -> str:
        """12 hexadecimal digits, which change with everything on which the unit's answers depend."""
        settings = self.policies[policy]
        depends: dict[str, Any] = {"base_model": self.base_model, "rows": self.rows[task][1]}
        if part.kind == "route":
            depends |= {"settings": _without(settings, MERGING), "tasks": sorted(self.adapters), **self.retrieval}
        elif settings["router"] == "base":
            depends |= {"choice_normalization": settings["choice_normalization"]}
        elif settings["router"] == "own_task":
            depends |= {"settings": _without(settings, ROUTING), "adapter": self.adapters[task]}
        else:
            depends |= {"settings": settings, "adapters": self.adapters, **self.retrieval}
        if settings.get("weighting") == "measured":
            depends |= {"gains": self.gains}
        if part.exclude_own:
            depends |= {"kept out": sorted(adapter for adapter, seen in self.tasks_seen.items() if task in seen)}
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]


def read_state(connection: Connection) -> State:
    """Read the current state of the database."""

    def read(statement: str) -> list[dict[str, Any]]:
        return connection.execute(statement).fetchall()

    adapters = read(ADAPTERS)
    return State(
        base_model=read(BASE_MODEL)[0]["fingerprint"],
        retrieval={"encoder": read(ENCODER), "index": read(INDEX)[0]["digest"]},
        adapters={row["task"]: row["sha256"] for row in adapters},
        tasks_seen={row["task"]: row["tasks_seen"] for row in adapters},
        policies={row["name"]: row["settings"] for row in read(POLICIES)},
        rows={row["name"]: (row["rows"], row["digest"]) for row in read(ROWS)},
        gains=read(GAINS)[0]["digest"],
    )


def _without(settings: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}
