"""The Leases of a real cluster by name, through a plain client: the back door of the suite there."""

from lightkube import ApiError, Client, KubeConfig
from lightkube.generic_resource import create_namespaced_resource

_LEASE = create_namespaced_resource("coordination.k8s.io", "v1", "Lease", "leases")


class ClusterLeases:
    """Name → object, in one namespace; its user must be allowed to delete Leases too."""

    def __init__(self, kubeconfig, namespace):
        self._client = Client(KubeConfig.from_file(kubeconfig), namespace=namespace)
        self._namespace = namespace

    def get(self, name):
        try:
            return dict(self._client.get(_LEASE, name))
        except ApiError as exc:
            if exc.response.status_code != 404:
                raise
            return None

    def __setitem__(self, name, lease):
        meta = lease["metadata"] | {"name": name, "namespace": self._namespace}
        if (old := self.get(name)) is None:
            self._client.create(_LEASE(lease | {"metadata": meta}))
        else:
            meta["resourceVersion"] = old["metadata"]["resourceVersion"]
            self._client.replace(_LEASE(lease | {"metadata": meta}))

    def __delitem__(self, name):
        self._client.delete(_LEASE, name)
