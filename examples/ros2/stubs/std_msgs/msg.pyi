class Header:
    frame_id: str

class String:
    data: str
