"""An adapter's card: README.md of its folder, said from its training record."""

from typing import Any


def adapter_card(record: dict[str, Any]) -> str:
    """Markdown with the front matter that model hubs read."""
    data, scores = record["data"], record["held_out"]
    settings, base = record["hyper_parameters"], record["base_model"]
    dataset = " ".join(filter(None, [data["dataset_path"], data["dataset_name"]]))
    return "\n".join(
        [
            "---",
            "library_name: peft",
            f"base_model: {base['source']}",
            "tags: [lora, loracomp]",
            "---",
            f"# {record['task']} ({record['family']})",
            "",
            f"A LoRA adapter for {base['name']}, trained by `loracomp train`; training.json has all of this and more.",
            "",
            f"- Base model weights: sha256 {base['fingerprint']}",
            f"- Data: {dataset}, split {data['training_split']}; licence of the data: {data['licence']}",
            f"- Rows: {record['rows_seen']} seen, of {data['rows']}; their digest: {data['digest']}",
            f"- Rank {settings['rank']}, alpha {settings['alpha']:g}, on {', '.join(settings['target_modules'])}",
            f"- Learning rate {settings['learning_rate']:g}, {settings['batch_size']} rows a step",
            f"- Seed {settings['seed']}, epochs {settings['epochs']:g}",
            *_scores(scores),
            "",
        ]
    )


def _scores(scores: dict[str, Any]) -> list[str]:
    if not scores["rows"]:
        return []
    base, adapter = scores["base"], scores["adapter"]
    gains = ", ".join(f"{name} {base[name]:.1%} to {adapter[name]:.1%}" for name in base)
    return [f"- On {scores['rows']} train rows kept aside, base model to adapter: {gains}"]
