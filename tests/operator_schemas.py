"""Checks objects of KEDA and of Prometheus' operator: `python operator_schemas.py FILE...`.

The models are made of the operators' custom resource definitions. `make test-kubernetes` makes an environment for them,
because their package brings a plugin for pytest, which the other tests must not load.
"""

import sys
from pathlib import Path

import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from cloudcoil.models.prometheus_operator.v1 import PodMonitor

MODELS = {model.__name__: model for model in (ScaledObject, TriggerAuthentication, PodMonitor)}

for file in sys.argv[1:]:
    for document in yaml.safe_load_all(Path(file).read_text()):
        if model := MODELS.get(document["kind"]):
            # Models drop what they don't know, so what comes out is compared.
            known = model.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
            if known != document:
                sys.exit(f"{file}: a part of {document['kind']} has no place in its schema: {document} became {known}")
            print(document["kind"])
