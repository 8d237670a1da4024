"""Full sentences packed into instances, for masked-language modelling alone, as in RoBERTa.

    full_sentences  as many whole sentences as fit, in the order of the corpus. An instance continues
                    in the next document, after one more [SEP]
    doc_sentences   the same within a document, whose last instance may be short

(Liu et al. 2019, "RoBERTa", section 4.2.) All segment ids are 0, and there is no label. An
instance holds the same sentences in every epoch, with other masks. A sentence that is longer than an
instance makes an instance of its own: a run of its tokens from a random place.
"""

from __future__ import annotations

from mslt_ds.data.compiled import compiled


@compiled
def pack(sentences, documents, document, first, most_tokens, crosses):
    """Pack sentences from sentence `first` of `document` on. Returns the end of the sentences, the number
    of their tokens, and the number of document borders among them.

    most_tokens: between [CLS] and the last [SEP], separators of documents included
    crosses: whether an instance continues in the next document
    """
    end = first + 1
    borders = 0
    while True:
        border = 1 if end == documents[document + 1] else 0
        if border and (not crosses or document + 2 == len(documents)):
            break
        if sentences[end + 1] - sentences[first] + borders + border > most_tokens:
            break
        document += border
        borders += border
        end += 1
    return end, sentences[end] - sentences[first], borders
