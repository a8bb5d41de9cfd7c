#!/usr/bin/env bash
# Entry point of the image `nightmill`. Spark starts executors on Kubernetes with the argument `executor` and variables of its own
# (resource-managers/kubernetes of apache/spark, entrypoint.sh); whatever else is asked for is run as it is.
set -euo pipefail
if [ "${1:-}" != executor ]; then
    exec "$@"
fi
export JAVA_HOME="${JAVA_HOME:-$NIGHTMILL_JAVA_HOME}"
spark=$(python -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parent)')
options=()
while IFS='=' read -r name value; do
    case $name in SPARK_JAVA_OPT_*) options+=("$value") ;; esac
done < <(env | sort -t_ -k4 -n)
exec "$JAVA_HOME/bin/java" "${options[@]}" -Xms"$SPARK_EXECUTOR_MEMORY" -Xmx"$SPARK_EXECUTOR_MEMORY" \
    -cp "${SPARK_CONF_DIR:-$spark/conf}:$spark/jars/*" \
    org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
    --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
    --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
    --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
