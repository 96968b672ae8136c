"""The rule ``clean-1``: what of the caller's environment reaches a launched program.

Dropped is what makes an interpreter, the loader or a library run or trust something that the caller names. The rule
is a table, so it covers what stands here and nothing else; the names that were dropped are told to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIXES = (
    "AIMS_",
    "BASH_FUNC_",
    "CORECLR_PROFILER",
    "COR_PROFILER",
    "DYLD_",
    "GUILE_",
    "LD_",
    "LUA_",
    "OPENSSL_",
    "PERL",
    "PYTHON",
    "RUBY",
    "SSL_CERT_",
    "SSLKEYLOG",
)
NAMES = frozenset(
    {
        "AWS_CA_BUNDLE",
        "BASHOPTS",
        "BASH_ENV",
        "BUN_OPTIONS",
        "CDPATH",
        "CLASSPATH",
        "COVERAGE_PROCESS_CONFIG",
        "COVERAGE_PROCESS_START",
        "CURL_CA_BUNDLE",
        "DENO_DIR",
        "DOTNET_ADDITIONAL_DEPS",
        "DOTNET_SHARED_STORE",
        "DOTNET_STARTUP_HOOKS",
        "ENV",
        "ERL_AFLAGS",
        "ERL_FLAGS",
        "ERL_LIBS",
        "ERL_ZFLAGS",
        "GCONV_PATH",
        "GEM_HOME",
        "GEM_PATH",
        "GIO_EXTRA_MODULES",
        "GI_TYPELIB_PATH",
        "GLIBC_TUNABLES",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "GST_PLUGIN_PATH",
        "GTK_MODULES",
        "HOSTALIASES",
        "HTTPLIB2_CA_CERTS",
        "JAVA_TOOL_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "JULIA_LOAD_PATH",
        "KRB5_CONFIG",
        "LOCPATH",
        "NODE_EXTRA_CA_CERTS",
        "NODE_OPTIONS",
        "NODE_PATH",
        "NIX_SSL_CERT_FILE",
        "NLSPATH",
        "ODBCINI",
        "ODBCSYSINI",
        "PHPRC",
        "PHP_INI_SCAN_DIR",
        "PROMPT_COMMAND",
        "PS4",
        "QT_PLUGIN_PATH",
        "R_ENVIRON",
        "R_LIBS",
        "R_PROFILE",
        "REQUESTS_CA_BUNDLE",
        "SHELLOPTS",
        "SPIFFE_ENDPOINT_SOCKET",
        "TCLLIBPATH",
        "TCL_LIBRARY",
        "ZDOTDIR",
        "_JAVA_OPTIONS",
        "__PYVENV_LAUNCHER__",
    }
)


def dropped(name: str) -> bool:
    """Tell whether the rule drops a variable of this name."""
    return name in NAMES or name.startswith(PREFIXES)


def clean(environment: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Split into what is kept and the sorted names of what is dropped."""
    kept = {name: value for name, value in environment.items() if not dropped(name)}
    return kept, tuple(sorted(set(environment) - set(kept)))


def launched(environment: Mapping[str, str], *, workload_socket: str, bytecode: str) -> dict[str, str]:
    """Return the environment of a launched program: the cleaned one and what the node sets.

    ``bytecode`` is a fresh folder: without it Python would run a ``.pyc`` of the tree, which nobody measured.
    """
    return {
        **clean(environment)[0],
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPYCACHEPREFIX": bytecode,
        "SPIFFE_ENDPOINT_SOCKET": f"unix://{workload_socket}",
    }
