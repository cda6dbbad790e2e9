FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 MLFLOW_DISABLE_TELEMETRY=true JEPA_ROOT=/srv
WORKDIR /opt/lightning_jepa
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY lightning_jepa lightning_jepa
COPY data_pipelines data_pipelines
COPY conf conf
RUN pip install -c constraints.txt .

# Data, runs and results go to a volume that the user of the container owns.
RUN useradd --create-home --uid 1000 agent && mkdir -p /srv && chown agent /srv
USER agent
WORKDIR /srv
VOLUME /srv
ENTRYPOINT ["python", "-m", "lightning_jepa.pipeline"]
CMD ["experiment=two_rooms"]
