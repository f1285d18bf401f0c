"""The words in `diagrams.py`, by language: data, and nothing else.

Every language has the same keys. `NAME.title` and `NAME.text` are what is read out instead of the
diagram NAME.
"""

from __future__ import annotations

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "block.title": "GPT-2 from tokens to logits",
        "block.text": (
            "Token and position vectors are added and become the residual stream. It runs through "
            "{L} blocks. In each, layer norm and attention ({H} heads), then layer norm and MLP, "
            "read the stream and add to it. A last layer norm and the head, whose weights are the "
            "token vectors, give the logits."
        ),
        "tokens": "tokens",
        "vectors": "token vector + position vector",
        "block": "block",
        "attention": "attention",
        "between": "between positions",
        "alone": "each position alone",
        "stream": "residual stream",
        "head": "head",
        "logits": "logits",
        "cache.title": "The cache, pass by pass",
        "cache.text": (
            "A grid: one line for each pass, one column for each position. The prefill computes "
            "{prompt} positions at once. Each of the {steps} decode steps after it computes one, "
            "at the right end of the line; all positions to its left are kept from before."
        ),
        "positions": "position",
        "prefill": "prefill",
        "decode": "decode",
        "new": "computed in this pass",
        "kept": "kept from before",
        "room": "room for later",
        "cell": "Each place: a key and a value of {D} numbers,\n"
        "in {G} heads of each of {L} layers.",
        "bytes": "bytes per token",
        "attention.title": "One step of attention",
        "attention.text": (
            "The new token's vector x becomes a query q, a key k and a value v. k and v are "
            "appended to the keys K and values V in the cache. The query is multiplied with all "
            "keys and divided by the root of the head width; softmax makes weights of the scores; "
            "the values are mixed by these weights, in each of {H} heads; c_proj joins the heads."
        ),
        "append": "append",
        "in cache": "in the cache",
        "scores": "scores",
        "weights": "weights",
        "mix": "weights · V",
        "out": "added to the stream",
        "paged.title": "Growing and paged memory",
        "paged.text": (
            "Above, the growing cache: each step makes a longer piece of memory and copies all "
            "there is. Below, the paged cache: memory is cut into pages of {page} positions, and a "
            "step writes one place. Texts A and B share their first two pages."
        ),
        "growing": "each step copies everything",
        "copied": "{n} copied: {size} bytes",
        "paged": "pages of {page} positions, nothing is copied",
        "page": "page",
        "text": "text",
        "shared": "Pages 0 and 1 are in memory once, for both texts.",
        "heads.title": "Heads that share keys and values",
        "heads.text": (
            "{H} query heads. In the first drawing each has its own key/value head, in the second "
            "a few share one, in the last all share a single one. The cache shrinks accordingly."
        ),
        "each": "each query head has its own",
        "few": "several share one",
        "one": "all share one",
        "queries": "queries",
        "keys values": "keys, values",
    },
    "vi": {
        "block.title": "GPT-2 từ token đến logits",
        "block.text": (
            "Vectơ token và vectơ vị trí được cộng lại thành dòng thặng dư. Dòng này đi qua {L} "
            "khối. Trong mỗi khối, layer norm và attention ({H} đầu), rồi layer norm và MLP, đọc "
            "dòng và cộng thêm vào đó. Cuối cùng, một layer norm nữa và tầng đầu ra, có trọng số "
            "chính là các vectơ token, cho ra logits."
        ),
        "tokens": "token",
        "vectors": "vectơ token + vectơ vị trí",
        "block": "khối",
        "attention": "attention",
        "between": "giữa các vị trí",
        "alone": "từng vị trí riêng",
        "stream": "dòng thặng dư",
        "head": "tầng đầu ra",
        "logits": "logits",
        "cache.title": "Cache qua từng lượt",
        "cache.text": (
            "Một lưới: mỗi hàng là một lượt, mỗi cột là một vị trí. Lượt prefill tính {prompt} vị "
            "trí cùng lúc. Mỗi bước trong {steps} bước decode sau đó chỉ tính một vị trí, ở cuối "
            "hàng; mọi vị trí bên trái được giữ lại từ trước."
        ),
        "positions": "vị trí",
        "prefill": "prefill",
        "decode": "decode",
        "new": "tính ở lượt này",
        "kept": "giữ từ trước",
        "room": "chỗ để dành",
        "cell": "Mỗi ô: một khóa và một giá trị gồm {D} số,\n"
        "ở {G} đầu của mỗi tầng trong {L} tầng.",
        "bytes": "byte mỗi token",
        "attention.title": "Một bước attention",
        "attention.text": (
            "Vectơ x của token mới cho ra truy vấn q, khóa k và giá trị v. k và v được nối vào các "
            "khóa K và giá trị V trong cache. Truy vấn được nhân với mọi khóa rồi chia cho căn bậc "
            "hai của độ rộng đầu; softmax biến điểm số thành trọng số; các giá trị được trộn theo "
            "trọng số đó, ở mỗi đầu trong {H} đầu; c_proj gộp các đầu lại."
        ),
        "append": "nối thêm",
        "in cache": "trong cache",
        "scores": "điểm số",
        "weights": "trọng số",
        "mix": "trọng số · V",
        "out": "cộng vào dòng",
        "paged.title": "Bộ nhớ dài dần và bộ nhớ phân trang",
        "paged.text": (
            "Phía trên là cache dài dần: mỗi bước tạo một vùng nhớ dài hơn và sao chép tất cả. "
            "Phía dưới là cache phân trang: bộ nhớ được chia thành trang {page} vị trí, mỗi bước "
            "chỉ ghi một ô. Văn bản A và B dùng chung hai trang đầu."
        ),
        "growing": "mỗi bước sao chép tất cả",
        "copied": "sao chép {n}: {size} byte",
        "paged": "trang {page} vị trí, không sao chép gì",
        "page": "trang",
        "text": "văn bản",
        "shared": "Trang 0 và 1 chỉ nằm một lần trong bộ nhớ, cho cả hai văn bản.",
        "heads.title": "Các đầu dùng chung khóa và giá trị",
        "heads.text": (
            "{H} đầu truy vấn. Hình đầu: mỗi đầu có khóa/giá trị riêng; hình giữa: vài đầu dùng "
            "chung; hình cuối: tất cả dùng chung một. Cache nhỏ đi tương ứng."
        ),
        "each": "mỗi đầu truy vấn có riêng",
        "few": "vài đầu dùng chung",
        "one": "tất cả dùng chung một",
        "queries": "truy vấn",
        "keys values": "khóa, giá trị",
    },
    "ko": {
        "block.title": "GPT-2: 토큰에서 로짓까지",
        "block.text": (
            "토큰 벡터와 위치 벡터를 더하면 잔차 스트림이 된다. 이 스트림은 블록 {L}개를 지난다. "
            "각 블록에서 층 정규화와 어텐션(헤드 {H}개), 이어서 층 정규화와 MLP가 스트림을 읽고 "
            "결과를 더한다. 마지막 층 정규화와 출력층이 로짓을 내며, 출력층의 가중치는 토큰 "
            "벡터와 같다."
        ),
        "tokens": "토큰",
        "vectors": "토큰 벡터 + 위치 벡터",
        "block": "블록",
        "attention": "어텐션",
        "between": "위치들 사이에서",
        "alone": "위치마다 따로",
        "stream": "잔차 스트림",
        "head": "출력층",
        "logits": "로짓",
        "cache.title": "패스마다 본 캐시",
        "cache.text": (
            "격자 그림이다. 한 줄이 한 패스, 한 칸이 한 위치다. 프리필은 위치 {prompt}개를 한 "
            "번에 계산한다. 그 뒤 디코드 {steps}단계는 줄의 오른쪽 끝 한 칸만 계산하고, 왼쪽 "
            "칸은 모두 전에 계산해 둔 것이다."
        ),
        "positions": "위치",
        "prefill": "프리필",
        "decode": "디코드",
        "new": "이번 패스에서 계산",
        "kept": "전에 보관한 것",
        "room": "비어 있는 자리",
        "cell": "한 칸: 숫자 {D}개짜리 키와 값,\n층 {L}개마다 헤드 {G}개씩.",
        "bytes": "바이트/토큰",
        "attention.title": "어텐션의 한 단계",
        "attention.text": (
            "새 토큰의 벡터 x에서 쿼리 q, 키 k, 값 v가 나온다. k와 v는 캐시의 키 K와 값 V 뒤에 "
            "붙는다. 쿼리를 모든 키와 곱해 헤드 너비의 제곱근으로 나누고, 소프트맥스가 점수를 "
            "가중치로 바꾸며, 헤드 {H}개 각각에서 값을 그 가중치로 섞는다. c_proj가 헤드를 "
            "합친다."
        ),
        "append": "덧붙이기",
        "in cache": "캐시 안",
        "scores": "점수",
        "weights": "가중치",
        "mix": "가중치 · V",
        "out": "스트림에 더함",
        "paged.title": "늘어나는 메모리와 페이지 메모리",
        "paged.text": (
            "위는 growing 캐시다. 단계마다 더 긴 메모리를 만들고 전부 복사한다. 아래는 paged "
            "캐시다. 메모리를 위치 {page}개짜리 페이지로 나누고 한 단계는 한 칸만 쓴다. 글 A와 B는 "
            "처음 두 페이지를 함께 쓴다."
        ),
        "growing": "단계마다 전부 복사",
        "copied": "{n}개 복사: {size}바이트",
        "paged": "위치 {page}개짜리 페이지, 복사 없음",
        "page": "페이지",
        "text": "글",
        "shared": "페이지 0과 1은 메모리에 한 번만 있고 두 글이 함께 쓴다.",
        "heads.title": "키와 값을 함께 쓰는 헤드",
        "heads.text": (
            "쿼리 헤드는 {H}개다. 첫 그림에서는 헤드마다 키/값 헤드가 따로 있고, 둘째에서는 몇 "
            "개가 하나를 함께 쓰며, 마지막에서는 모두가 하나를 쓴다. 캐시도 그만큼 작아진다."
        ),
        "each": "쿼리 헤드마다 따로",
        "few": "몇 개가 하나를 함께",
        "one": "모두가 하나를 함께",
        "queries": "쿼리",
        "keys values": "키, 값",
    },
}
