user_id = 7


def send_welcome(user_id: int) -> None:
    pass
