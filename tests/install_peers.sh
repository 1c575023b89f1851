#!/bin/sh
# Installs the DICOM programs and the browser that the service tests talk to, where this machine lets us: Debian, as root.
# Whatever is missing afterwards is said, and the tests that need it are skipped with that reason.
missing() {
    for program in /usr/bin/storescu /usr/bin/dciodvfy /usr/sbin/Orthanc /usr/share/orthanc/plugins/libOrthancDicomWeb.so \
        /usr/bin/chromium /usr/bin/chromedriver; do
        test -e "$program" || printf '%s ' "$program"
    done
}

if [ -n "$(missing)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends dcmtk dicom3tools orthanc orthanc-dicomweb \
        chromium chromium-driver >/dev/null
fi
still=$(missing)
[ -z "$still" ] || echo "Not installed, so their tests are skipped: $still(Debian: dcmtk dicom3tools orthanc orthanc-dicomweb chromium chromium-driver)"
exit 0
