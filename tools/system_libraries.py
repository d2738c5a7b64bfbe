"""Check for the system libraries that Python packages load; install them where possible.

Runs on the standard library alone, before anything else is installed:

    python tools/system_libraries.py
"""

import ctypes
import os
import shutil
import subprocess
import sys

# What the loader looks for, and the Debian package that holds it. OpenCV's wheels need the first
# three, Open3D's the first and the last three.
LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libX11.so.6": "libx11-6",
    "libEGL.so.1": "libegl1",
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libgomp.so.1": "libgomp1",
}


def missing_libraries(libraries: dict[str, str]) -> dict[str, str]:
    """Return the part of ``libraries`` (library file to Debian package) that cannot be loaded."""
    missing = {}
    for name, package in libraries.items():
        try:
            ctypes.CDLL(name)
        except OSError:
            missing[name] = package
    return missing


def install_command(packages: list[str]) -> str:
    """Return the shell command that installs Debian ``packages``."""
    return "apt-get update && apt-get install --yes --no-install-recommends " + " ".join(packages)


def main() -> None:
    """Install what is missing as root on a Debian system; elsewhere name it and exit with 1."""
    missing = missing_libraries(LIBRARIES)
    if not missing:
        return
    command = install_command(sorted(missing.values()))
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"System libraries are missing: {', '.join(missing)}. Installing them: {command}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(command, shell=True, check=False, env=environment)
        missing = missing_libraries(missing)
    if missing:
        sys.exit(
            f"System libraries are missing: {', '.join(missing)}.\n"
            f"Install them, on Debian or Ubuntu as root with\n    {command}\n"
            "then run the same make command again."
        )


if __name__ == "__main__":
    main()
