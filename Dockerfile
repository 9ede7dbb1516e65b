# eco-fast on an NVIDIA GPU. Not built here: nobody has run this file yet, on a GPU or without one.
#
#   docker build -t eco-fast .
#   docker run --gpus all --ipc host -v "$PWD:/images" eco-fast train edsr_baseline_x2_eco --data.train DIV2K_train_HR
#
# torch's wheels bring their CUDA libraries; of the system it takes the driver, a C++ compiler and Python's headers.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/eco-fast
ENV PATH=/opt/eco-fast/bin:$PATH

COPY . /src
RUN pip install --no-cache-dir "/src[dali]" && rm -rf /src

WORKDIR /images
ENTRYPOINT ["eco-fast"]
