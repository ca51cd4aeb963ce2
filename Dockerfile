# promptseg in a container: the tests, or the whole chain, with every version as locked.
#
#   docker build --tag promptseg .
#   docker run --rm promptseg dvc repro
#   docker build --build-arg BASE=nvidia/cuda:13.2.0-base-ubuntu24.04 --tag promptseg:gpu .
#   docker run --rm --gpus all promptseg:gpu dvc repro
#
# BASE needs apt and glibc 2.35 or later, for Qualcomm's compiler; Python is installed where it has none. torch's wheel
# brings CUDA's libraries, so that a GPU's base need only have what connects to the driver.
ARG BASE=python:3.11-slim-trixie
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends git libc++1 libgomp1 \
    && (python3 -m venv --help >/dev/null 2>&1 && python3 -c "import ensurepip" \
        || DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv

WORKDIR /promptseg
# The packages first, by their hashes: a change of code makes the last layers anew, and not these gigabytes.
COPY requirements/lock.txt requirements/lock.txt
RUN python -m pip install --require-hashes --requirement requirements/lock.txt

COPY . .
# DVC and git want a repository and somebody; the copied one may be of another user.
RUN python -m pip install --no-deps --editable . \
    && git config --system --add safe.directory /promptseg \
    && git config --system user.name promptseg && git config --system user.email promptseg@localhost \
    && (git rev-parse HEAD >/dev/null 2>&1 || (git init --quiet && git add --all && git commit --quiet --message "as copied"))

CMD ["python", "-m", "promptseg", "doctor"]
