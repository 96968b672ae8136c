"""Keys that the WIMSE drafts print: everybody can sign with them.

RFC 7638 thumbprints, with the document that prints the key. Issuer keys are listed too: their private halves are not
published, but nothing but an example can carry them.
"""

from __future__ import annotations

from typing import Final

PRINTED_KEYS: Final = frozenset(
    {
        "-PTiuiMwpW_0dv_Y5tpXxsmMU-XmSZwUNdKRS79oyYk",  # workload-creds, identity server
        "sWptYalQwqq7mvswEtvcpHYbrI-lqgVH7SdfkHinUzI",  # workload-creds, workload
        "uJwUZL_vhPhSDz_plhDpOqD0JuDJmPBNJLT8gFPyo3E",  # http-signature-07, svca
        "DqXRTx6Yq84v0uPg4Y_rJsZ9xRzAVHcoNsutVcutF_g",  # http-signature-07, svcb
        "R9v86dYEjIinHW5d2VShcJfVF8WtK2CsynT2B0s-p28",  # http-signature-07, svcc
        "9NGYr3UpHBoHRsFuZSkCJhVdxfnJKnhNN2rupg4kfkk",  # http-signature-06, svca
        "Q846Up0CioeRfn00_yjqaVhyK4SgCKb-B2uhTJZ44-o",  # http-signature-06, svcb
        "IMR_wC0Z_Q37LK2iAMSgIi0ub3o1gl82_sFbrPcWE-U",  # http-signature-05, svca
        "aJtzC7n7Kisb5Sm-7jYM3YmswM2rRu4qJsrb0tHqoRw",  # http-signature-05, svcb
        "pnl4WNm-trm-XHmKZsNvzZXxg3ythjm_Sag_6s3eyZs",  # http-signature-03, svca
        "PbAjg1iez9kHGl96AfZiswJkO9Yk3zp0py6BxKy6VGw",  # http-signature-03, svcb
        "aZVK1wzV39Oy2L_WAivGhbVI8akdwpkjtesUB7QNjcQ",  # http-signature-02, svca
        "wt1HQ1sZtr-NseYECRT6uAvfPBUAYK1HLnCV6L4sJPY",  # http-signature-02, svcb
        "FliqtLV84NCcbLpef_qIsrjRFepb_q6_4K2P7ypo6cQ",  # http-signature-00, svca
        "wl0kYaDu6OctDNRDdOug0X4ahxkan5DMKmLpO_2ugOs",  # http-signature-00, svcb
        "iY3WT5HkZdeqlmOXMzTagsNnMrESMoINh4oZOPfkLxE",  # s2s-protocol-07, svcb
        "vzl3jLhx3wOyAbO3hYLRm0Plqpg3FkIPwHctNTHNl34",  # s2s-protocol-05, identity server
        "ufXX__8bchw1azXXwf_3npaPhO3CxCaayzbKkMUD5Rw",  # s2s-protocol-03, identity server
        "YRfXergdgT6JYgjJuQMIrQBp5LsJpDNgWhvpYyHC73w",  # s2s-protocol-03, workload
        "ofHrqVCIb1CUS4a3Zacdv3Wm8tRzq5kLBcn2E66MMS4",  # s2s-protocol-02, workload
    }
)
