"""The manifests, each read by whom it is for: KubeRay's schema, Ray's autoscaler and launcher, EC2's API, MLflow's and our
own command line; and what they promise of tokens, spot nodes, ends, versions and secrets."""

import copy
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml
from packaging.specifiers import SpecifierSet

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

from cluster.scratch import CAP_BYTES
from jobs.cli import JOBS, parse_options

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "cluster" / "manifests"
CRDS = ROOT.parent / "shared" / "assets" / "kuberay"
JOB_FILES = ["rayjob-extract.yaml", "rayjob-train.yaml", "rayjob-tune.yaml"]
KUBERAY_FILES = ["raycluster.yaml", *JOB_FILES]
SPOT_LABEL = "karpenter.sh/capacity-type"
BYTES = {"Mi": 2**20, "Gi": 2**30}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def document(name: str) -> dict[str, Any]:
    (only,) = documents(name)
    return only


def of_kind(name: str, kind: str, called: str) -> dict[str, Any]:
    (found,) = [each for each in documents(name) if (each["kind"], each["metadata"]["name"]) == (kind, called)]
    return found


class Pod(NamedTuple):
    """A pod template of a KubeRay file."""

    name: str
    spec: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.spec["containers"]
        return only

    @property
    def env(self) -> dict[str, Any]:
        names = [each["name"] for each in self.container["env"]]
        assert len(names) == len(set(names))
        return {each["name"]: each.get("value", each.get("valueFrom")) for each in self.container["env"]}

    def volume(self, path: str) -> dict[str, Any]:
        """What is mounted there."""
        (name,) = [each["name"] for each in self.container["volumeMounts"] if each["mountPath"] == path]
        (found,) = [each for each in self.spec["volumes"] if each["name"] == name]
        return found["emptyDir"]


def cluster_spec(name: str) -> dict[str, Any]:
    spec = document(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str, *, submitter: bool = True) -> dict[str, Pod]:
    """The pods of a file: `head`, the worker groups by name, and `submitter` where it is a job."""
    cluster, spec = cluster_spec(name), document(name)["spec"]
    found = {"head": Pod("head", cluster["headGroupSpec"]["template"]["spec"])}
    for group in cluster["workerGroupSpecs"]:
        found[group["groupName"]] = Pod(group["groupName"], group["template"]["spec"])
    if submitter and "submitterPodTemplate" in spec:
        found["submitter"] = Pod("submitter", spec["submitterPodTemplate"]["spec"])
    return found


def amount(quantity: str) -> int:
    """A Kubernetes quantity of memory, in bytes."""
    return int(quantity[:-2]) * BYTES[quantity[-2:]]


# --- read by KubeRay ---


def strict(schema: Any) -> Any:
    """An OpenAPI v3 schema of a CRD as a JSON schema that refuses unknown fields, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "properties"}
    made = {key: strict(value) for key, value in kept.items()}
    if "properties" in schema:  # its keys are names of fields, not words of the schema
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return made


@pytest.fixture(scope="module")
def crds() -> dict[str, dict[str, Any]]:
    """KubeRay's definitions by kind."""
    if not CRDS.is_dir():
        pytest.skip(
            "KubeRay's definitions are not beside this checkout: put ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of "
            "its helm chart into ../shared/assets/kuberay"
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = [yaml.load(path.read_bytes(), loader) for path in sorted(CRDS.glob("*.yaml"))]
    return {each["spec"]["names"]["kind"]: each["spec"] for each in found}


def schema_errors(crds: dict[str, dict[str, Any]], manifest: dict[str, Any]) -> list[str]:
    definition = crds[manifest["kind"]]
    group, version = manifest["apiVersion"].split("/")
    assert group == definition["group"]
    (served,) = [each for each in definition["versions"] if each["name"] == version and each["storage"]]
    validator = jsonschema.Draft202012Validator(strict(served["schema"]["openAPIV3Schema"]))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_kuberay_takes_the_file(name, crds):
    assert schema_errors(crds, document(name)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "shutdownAfterJobFinish"), True),
        (("spec", "backoffLimit"), "two"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "none"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "envs"), []),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "submitterPodTemplate", "spec", "nodeSelectors"), {}),
    ],
)
def test_the_check_by_the_schema_sees_misspelt_fields_and_wrong_types(place, value, crds):
    manifest = copy.deepcopy(document("rayjob-extract.yaml"))
    inner = manifest
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    assert len(schema_errors(crds, manifest)) == 1


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_rays_autoscaler_sees_a_head_without_work_gpu_nodes_and_decode_nodes(name):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = cluster_spec(name)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    seen = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": spec})
    head, gpu, decode = (seen["available_node_types"][each] for each in ("headgroup", "gpu", "decode"))
    assert head["resources"]["CPU"] == 0
    assert gpu["resources"]["GPU"] >= 1
    assert decode["resources"]["decode"] >= 1
    assert "GPU" not in decode["resources"]
    assert "decode" not in {**head["resources"], **gpu["resources"]}
    assert all(each["max_workers"] > each["min_workers"] for each in (gpu, decode))


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_the_token_is_asked_for_and_comes_from_one_secret_on_every_group_and_the_submitter(name):
    auth = cluster_spec(name)["authOptions"]
    assert auth["mode"] == "token"
    for pod in pods(name).values():
        assert pod.env["RAY_AUTH_MODE"] == "token", pod.name
        assert pod.env["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": auth["secretName"], "key": "auth_token"}}, (
            pod.name
        )
    assert set(pods(name)) == {"head", "gpu", "decode"} | ({"submitter"} if name in JOB_FILES else set())


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_workers_are_spot_and_what_a_job_dies_with_is_not(name):
    for pod in pods(name).values():
        tolerated = {each["key"] for each in pod.spec.get("tolerations", [])}
        if pod.name in ("head", "submitter"):
            assert pod.spec["nodeSelector"] == {SPOT_LABEL: "on-demand"}
            assert "spot" not in tolerated
        else:
            assert pod.spec["nodeSelector"] == {SPOT_LABEL: "spot"}
            assert {"spot"} | ({"nvidia.com/gpu"} if pod.name == "gpu" else set()) == tolerated


@pytest.mark.parametrize("name", JOB_FILES)
def test_a_job_ends_and_takes_its_cluster_along(name):
    spec = document(name)["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 600
    assert 0 < spec["activeDeadlineSeconds"] <= 7 * 86400
    # extract goes on from its store; of the others a second try is refused where --out holds the first.
    assert (spec["backoffLimit"] > 0) == (name == "rayjob-extract.yaml")
    assert spec["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_shared_memory_holds_rays_objects_and_scratch_what_is_in_transit(name):
    for pod in pods(name, submitter=False).values():
        limits = pod.container["resources"]["limits"]
        assert limits == pod.container["resources"]["requests"]
        shm, scratch = pod.volume("/dev/shm"), pod.volume(pod.env["MMA_MRNNET_SCRATCH"])
        assert shm["medium"] == "Memory"
        assert 0.3 * amount(limits["memory"]) <= amount(shm["sizeLimit"]) < amount(limits["memory"])
        assert "medium" not in scratch
        assert amount(scratch["sizeLimit"]) > CAP_BYTES


@pytest.mark.parametrize("name", JOB_FILES)
def test_the_files_describe_the_same_pods(name):
    own, standing = pods(name, submitter=False), pods("raycluster.yaml")
    assert own == standing
    assert own["head"].container["image"] == pods(name)["submitter"].container["image"]


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_storage_is_opened_by_the_accounts_role(name):
    account = document("serviceaccount.yaml")
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    for pod in pods(name, submitter=False).values():
        assert pod.spec["serviceAccountName"] == account["metadata"]["name"]
        assert not {each for each in pod.env if each.startswith("AWS_")} - {"AWS_DEFAULT_REGION"}
        if pod.name != "head":  # where the autoscaler sits; nobody else has to do with Kubernetes
            assert pod.spec["automountServiceAccountToken"] is False


# --- read by our own command line ---


@pytest.mark.parametrize("name", JOB_FILES)
def test_the_command_has_options_that_the_job_knows(name):
    program, job, *words = shlex.split(document(name)["spec"]["entrypoint"])
    assert (program, job) == ("mma-mrnnet", name.removeprefix("rayjob-").removesuffix(".yaml"))
    if job not in JOBS:
        pytest.skip(f"the job {job} is not there yet: this check starts with its entry in jobs.cli.JOBS")
    options = parse_options(importlib.import_module(f"jobs.{job}").Options, job, words)
    assert options is not None


def test_extract_decodes_where_the_decode_nodes_are():
    words = shlex.split(document("rayjob-extract.yaml")["spec"]["entrypoint"])
    named = words[words.index("--decode-resource") + 1]
    (group,) = [
        each for each in cluster_spec("rayjob-extract.yaml")["workerGroupSpecs"] if each["groupName"] == "decode"
    ]
    # KubeRay sets the value on a shell's command line, where the outer quotes go.
    (offered,) = shlex.split(group["rayStartParams"]["resources"])
    assert set(json.loads(offered)) == {named}


# --- read by Ray's launcher, and by EC2 ---


@pytest.fixture
def aws() -> dict[str, Any]:
    """The AWS file as Ray's launcher completes it, before it asks AWS for anything."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(document("aws.yaml"))


def test_rays_launcher_takes_the_file(aws):
    from ray.autoscaler._private.util import validate_config

    validate_config(aws)
    assert aws["provider"]["type"] == "aws"
    wrong = copy.deepcopy(aws)
    wrong["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(wrong)


def test_ec2_knows_every_setting_of_the_nodes(aws):
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    run_instances = session.get_service_model("ec2").operation_model("RunInstances").input_shape

    def errors(node_config: dict[str, Any]) -> str:
        return ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, run_instances).generate_report()

    for name, node_type in aws["available_node_types"].items():
        assert errors(node_type["node_config"]) == "", name
    assert "InstanceTyp" in errors({"InstanceTyp": "m7i.xlarge"})


def test_the_aws_nodes_are_a_lasting_head_gpu_workers_and_cheap_decode_workers(aws):
    types = aws["available_node_types"]
    head, gpu, decode = (types[each] for each in (aws["head_node_type"], "gpu", "decode"))
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(each["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for each in (gpu, decode))
    assert head["resources"] == {"CPU": 0}
    assert gpu["resources"]["GPU"] >= 1
    assert "GPU" not in decode["resources"]
    assert decode["resources"]["decode"] >= 1
    assert "decode" not in gpu["resources"]
    # Ray's count must be the machine's, and the machine of a kind that has a GPU or has none.
    for node_type, vcpus in ((gpu, {"g6.2xlarge": 8}), (decode, {"c7i.4xlarge": 16})):
        assert node_type["resources"]["CPU"] == vcpus[node_type["node_config"]["InstanceType"]]
        assert node_type["max_workers"] > node_type["min_workers"]
    assert aws["max_workers"] >= gpu["max_workers"] + decode["max_workers"]
    assert all("IamInstanceProfile" in each["node_config"] for each in types.values())


def test_every_aws_node_gets_the_token_as_a_file_and_asks_for_it(aws):
    assert aws["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env=RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    # A type with options of its own would run without these.
    assert not {"head_run_options", "worker_run_options"} & set(aws["docker"])
    assert not any("docker" in each for each in aws["available_node_types"].values())


def test_the_aws_image_is_used_as_it_is(aws):
    assert not any(aws[f"{each}setup_commands"] for each in ("", "head_", "worker_"))  # Ray's defaults install a Ray
    starts = [*aws["head_start_ray_commands"], *aws["worker_start_ray_commands"]]
    assert any("--head" in each and "--autoscaling-config=~/ray_bootstrap_config.yaml" in each for each in starts)
    assert any("--address=$RAY_HEAD_IP:6379" in each for each in starts)


# --- MLflow ---


def test_mlflow_takes_the_servers_options():
    from mlflow.cli import server

    (container,) = of_kind("mlflow.yaml", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["mlflow", "server"]
    given = server.make_context("server", list(container["args"])).params
    assert given["host"] == "0.0.0.0"
    assert given["port"] == container["ports"][0]["containerPort"]
    assert given["artifacts_destination"].startswith("s3://")


@pytest.mark.parametrize("name", KUBERAY_FILES)
def test_the_tracking_server_answers_to_the_name_that_jobs_call_it_by(name, monkeypatch):
    from mlflow.cli import server
    from mlflow.server.security_utils import get_allowed_hosts_from_env, is_allowed_host_header

    deployment = of_kind("mlflow.yaml", "Deployment", "mlflow")["spec"]["template"]
    (container,) = deployment["spec"]["containers"]
    hosts = server.make_context("server", list(container["args"])).params["allowed_hosts"]
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", hosts)
    for pod in pods(name, submitter=False).values():
        host = pod.env["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert is_allowed_host_header(get_allowed_hosts_from_env(), host)
        service = of_kind("mlflow.yaml", "Service", host.split(":")[0])["spec"]
        assert str(service["ports"][0]["port"]) == host.split(":")[1]
        assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]
        assert service["selector"].items() <= deployment["metadata"]["labels"].items()


def test_mlflows_database_is_on_a_disk_of_its_own_and_its_password_in_a_secret():
    (server,) = of_kind("mlflow.yaml", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    database = of_kind("mlflow.yaml", "StatefulSet", "mlflow-postgres")["spec"]
    (postgres,) = database["template"]["spec"]["containers"]
    (uri,) = [each.split("=", 1)[1] for each in server["args"] if each.startswith("--backend-store-uri=")]
    user, host, name = re.fullmatch(r"postgresql://(\w+)@([\w-]+):5432/(\w+)", uri).groups()
    env = {each["name"]: each.get("value", each.get("valueFrom")) for each in postgres["env"]}
    assert (env["POSTGRES_USER"], env["POSTGRES_DB"]) == (user, name)
    asked = {each["name"]: each.get("valueFrom") for each in server["env"]}["PGPASSWORD"]
    assert asked == env["POSTGRES_PASSWORD"]
    assert set(asked) == {"secretKeyRef"}
    assert of_kind("mlflow.yaml", "Service", host)["spec"]["selector"] == database["template"]["metadata"]["labels"]
    (mount,) = postgres["volumeMounts"]
    assert env["PGDATA"].startswith(f"{mount['mountPath']}/")
    assert [each["metadata"]["name"] for each in database["volumeClaimTemplates"]] == [mount["name"]]


# --- versions ---


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    if tomllib is None:
        pytest.skip("pyproject.toml is read with tomllib, which Python 3.10 lacks")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_images_are_of_the_projects_version(project):
    text = "\n".join(path.read_text() for path in MANIFESTS.iterdir())
    assert set(re.findall(r"mma-mrnnet:([^\s.]\S*?)(?=[\s.]*\s)", text)) == {project["version"]}
    images = {pod.container["image"] for name in KUBERAY_FILES for pod in pods(name).values()}
    (server,) = of_kind("mlflow.yaml", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    assert images | {server["image"]} == {f"mma-mrnnet:{project['version']}"}
    assert document("aws.yaml")["docker"]["image"].endswith(f"/mma-mrnnet:{project['version']}")


def test_ray_and_python_are_those_that_the_project_asks_for(project):
    (asked,) = [each for each in project["dependencies"] if each.startswith("ray[")]
    allowed = SpecifierSet(asked.split("]")[1])
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)$", (MANIFESTS / "Dockerfile").read_text(), re.M)
    ray_version, *python = base.groups()
    assert ray_version in allowed
    assert {cluster_spec(name)["rayVersion"] for name in KUBERAY_FILES} == {ray_version}
    assert ".".join(python) in SpecifierSet(project["requires-python"])


def test_the_image_holds_every_package_of_the_project(project):
    copied = re.findall(r"^COPY --chown=ray:users (.+) (\S+)$", (MANIFESTS / "Dockerfile").read_text(), re.M)
    sources = {source for each, _ in copied for source in each.split()}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert sources == packages | {"pyproject.toml", project["readme"], *project["license-files"]}
    assert all((ROOT / each).exists() for each in sources)
    assert all(target in ("./", source) for source, target in copied)


# --- secrets ---

SECRET_NAME = re.compile(r"(?i)(token|passw|secret|credential|access_?key|api_?key)")
SECRET_TEXT = re.compile(
    r"AKIA[0-9A-Z]{16}"  # AWS key id
    r"|\b[0-9a-f]{32,}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]+:[^/\s@$]+@"  # user:password@
    r"|(?i:token|password|secret|key)\s*[=:]\s*['\"]?(?=[\w/+]{12})(?=\w*\d)[\w/+]{12,}"
)
REFERENCES = {"secretKeyRef", "secretName", "automountServiceAccountToken", "HttpTokens", "file_mounts"}


def secrets_in(value: Any, name: str = "") -> list[str]:
    """Places of a document where something that a name calls secret stands as it is, not as a reference."""
    if isinstance(value, dict):
        if value.get("kind") == "Secret":
            return [f"{name}: a Secret with its content"]
        if "name" in value and "value" in value and SECRET_NAME.search(value["name"]):
            return [f"{name}: {value['name']}"]
        found = [secrets_in(inner, key) for key, inner in value.items() if key not in REFERENCES]
        return [each for one in found for each in one]
    if isinstance(value, list):
        return [each for inner in value for each in secrets_in(inner, name)]
    assigned = isinstance(value, str) and re.match(r"(?:--env=|-e )?(\w+)=\S", value)
    return [name] if SECRET_NAME.search(name) or (assigned and SECRET_NAME.search(assigned[1])) else []


@pytest.mark.parametrize("path", sorted(MANIFESTS.iterdir()), ids=lambda path: path.name)
def test_no_file_holds_a_secret(path):
    text = path.read_text()
    assert not SECRET_TEXT.findall(text)
    if path.suffix == ".yaml":
        assert [each for one in yaml.safe_load_all(text) for each in secrets_in(one)] == []


@pytest.mark.parametrize(
    "planted",
    [
        {"env": [{"name": "RAY_AUTH_TOKEN", "value": "abc"}]},
        {"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}]},
        {"run_options": ["--env=RAY_AUTH_TOKEN=abc"]},
        {"redis": {"password": "abc"}},
        {"kind": "Secret", "stringData": {"auth_token": "abc"}},
    ],
)
def test_the_search_for_secrets_finds_planted_ones(planted):
    assert secrets_in({"spec": planted})


@pytest.mark.parametrize(
    "planted",
    ["AKIAIOSFODNN7EXAMPLE", "postgresql://mlflow:hunter2@db/mlflow", "PASSWORD=correct0horse7battery", "0f" * 16],
)
def test_the_search_for_secrets_finds_their_text(planted):
    assert SECRET_TEXT.search(f"- {planted}\n")


# --- Prometheus ---


def test_prometheus_is_pointed_at_the_port_that_kuberay_names():
    (endpoint,) = document("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    for name in KUBERAY_FILES:  # a port of our own of that name would take its place
        assert all("ports" not in pod.container for pod in pods(name).values())
