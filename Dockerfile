FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 MLFLOW_DISABLE_TELEMETRY=true JEPA_ROOT=/work
WORKDIR /opt/lightning_jepa
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY lightning_jepa lightning_jepa
COPY data_pipelines data_pipelines
COPY conf conf
RUN pip install -c constraints.txt .

# Data, runs and results go to a volume that the user of the container owns.
RUN useradd --create-home --uid 1000 agent && mkdir /work && chown agent /work
USER agent
WORKDIR /work
VOLUME /work
ENTRYPOINT ["python", "-m", "lightning_jepa.pipeline"]
CMD ["experiment=two_rooms"]
