"""The overflow certificate: a proof that no accumulator can overflow.

Rules of this package: it shares no code with the solvers that it judges (only `accumulator`,
    `plan`,
`errors`, `files`); what it cannot prove it names; every number that decides is an integer.
"""

from brevitas_axe.proof.certificate.certificate import Certificate, DotProduct
from brevitas_axe.proof.certificate.live import certify
from brevitas_axe.proof.certificate.onnx_file import certify_file

__all__ = ["Certificate", "DotProduct", "certify", "certify_file"]
