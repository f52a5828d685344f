"""A real RTSP camera: GStreamer's server plays a picture, or a video, as H.264.

It is run by the system's own Python, which has GStreamer's bindings (Debian: gir1.2-gst-rtsp-server-1.0, python3-gi,
gstreamer1.0-plugins-good and -ugly):

    /usr/bin/python3 rtsp_camera.py PORT PICTURE.jpg|VIDEO.mp4 [USER PASSWORD]

It says "ready" when rtsp://127.0.0.1:PORT/gate answers. A picture is shown 30 times a second.
"""

import sys
from typing import Any


def main() -> None:
    """Serve until the process is ended."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    port, file, *account = sys.argv[1:]
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( filesrc location={file} ! {_video() if file.endswith('.mp4') else _picture()} )")
    factory.set_shared(True)
    if account:
        _ask_for(server, factory, *account, of=(Gst, GstRtspServer))
    server.get_mount_points().add_factory("/gate", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


def _picture() -> str:
    return (
        "jpegdec ! imagefreeze is-live=true ! video/x-raw,framerate=30/1 ! videoconvert ! x264enc tune=zerolatency "
        "speed-preset=ultrafast quantizer=12 pass=qual key-int-max=15 ! rtph264pay name=pay0"
    )


def _video() -> str:
    return "qtdemux ! h264parse ! rtph264pay name=pay0 config-interval=1"


def _ask_for(server: Any, factory: Any, user: str, password: str, *, of: Any) -> None:
    """Let in who has an account."""
    gst, rtsp = of
    auth, token = rtsp.RTSPAuth(), rtsp.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(rtsp.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    may = "user,media.factory.access=true,media.factory.construct=true"
    factory.add_role_from_structure(gst.Structure.new_from_string(may))


if __name__ == "__main__":
    main()
